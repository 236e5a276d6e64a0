//! Where frames begin, without keeping more than a window of their bytes.

/// Tells the length in bytes of the frame that begins with these bytes; none: more are needed.
///
/// It is asked at the beginning of each frame of either direction, from the first byte of a
/// connection on.
pub type FrameLength = fn(&[u8]) -> Option<usize>;

/// Whatever arrives together is a frame.
pub(super) fn chunk(bytes: &[u8]) -> Option<usize> {
    Some(bytes.len())
}

/// Follows the frames of one connection in one direction.
pub(super) struct Splitter {
    length: FrameLength,
    /// Bytes of the frame that was begun and is not through yet.
    rest: usize,
}

impl Splitter {
    pub(super) fn new(length: FrameLength) -> Self {
        Self { length, rest: 0 }
    }

    /// How many of the bytes may pass now. `inspect` is asked at the beginning of each frame, given
    /// as much of it as there is; where it answers `false`, nothing more passes.
    ///
    /// A frame that is not complete has to wait, unless the window is full.
    pub(super) fn pass(
        &mut self,
        bytes: &[u8],
        full: bool,
        mut inspect: impl FnMut(&[u8]) -> bool,
    ) -> Passed {
        let mut passed = 0;
        while passed < bytes.len() {
            let ahead = &bytes[passed..];
            if self.rest == 0 {
                // Only a window that holds nothing else can be as full as it gets.
                let no_more = full && passed == 0;
                let length = match (self.length)(ahead) {
                    Some(length) if length <= ahead.len() || no_more => length.max(1),
                    None if no_more => ahead.len(),
                    _ => break,
                };
                if !inspect(&ahead[..length.min(ahead.len())]) {
                    return Passed { bytes: passed, caught: true };
                }
                self.rest = length;
            }
            let step = self.rest.min(ahead.len());
            self.rest -= step;
            passed += step;
        }
        Passed { bytes: passed, caught: false }
    }
}

/// What may be forwarded, and whether the next frame was caught.
#[derive(Debug, PartialEq)]
pub(super) struct Passed {
    pub(super) bytes: usize,
    pub(super) caught: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame begins with its length, itself included.
    fn first_byte(bytes: &[u8]) -> Option<usize> {
        bytes.first().map(|length| usize::from(*length))
    }

    fn passed(bytes: usize, caught: bool) -> Passed {
        Passed { bytes, caught }
    }

    #[test]
    fn complete_frames_pass_and_the_rest_waits() {
        let mut splitter = Splitter::new(first_byte);
        let mut seen = Vec::new();
        let mut inspect = |frame: &[u8]| {
            seen.push(frame.to_vec());
            true
        };
        assert_eq!(splitter.pass(&[2, 9, 3, 9], false, &mut inspect), passed(2, false));
        assert_eq!(splitter.pass(&[3, 9, 9], false, &mut inspect), passed(3, false));
        assert_eq!(seen, [vec![2, 9], vec![3, 9, 9]]);
    }

    #[test]
    fn what_is_before_a_caught_frame_passes() {
        let mut splitter = Splitter::new(first_byte);
        let answer = splitter.pass(&[2, 9, 3, 7, 7, 2, 9], false, |frame| frame[1] != 7);
        assert_eq!(answer, passed(2, true));
    }

    #[test]
    fn a_frame_larger_than_the_window_is_seen_once_and_passes_in_parts() {
        let mut splitter = Splitter::new(first_byte);
        let mut seen = 0;
        let mut inspect = |_: &[u8]| {
            seen += 1;
            true
        };
        assert_eq!(splitter.pass(&[10, 9, 9, 9], true, &mut inspect), passed(4, false));
        assert_eq!(splitter.pass(&[9, 9, 9, 9], true, &mut inspect), passed(4, false));
        assert_eq!(splitter.pass(&[9, 9, 1, 5], true, &mut inspect), passed(3, false));
        assert_eq!(seen, 2);
    }

    #[test]
    fn a_window_that_is_full_after_other_frames_waits_for_room() {
        let mut splitter = Splitter::new(first_byte);
        assert_eq!(splitter.pass(&[2, 9, 10, 9], true, |_| true), passed(2, false));
    }
}
