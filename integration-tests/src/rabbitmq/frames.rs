//! Frames of AMQP 0-9-1, as far as traps need them: type, channel, size, payload, end.

/// Bytes before the payload, and after it.
const AROUND: usize = 8;
/// What a client begins with instead of a frame.
const HELLO: &[u8] = b"AMQP\x00\x00\x09\x01";
const METHOD: u8 = 1;

/// The length of the frame that begins with these bytes.
pub(super) fn length(bytes: &[u8]) -> Option<usize> {
    if bytes.first() == HELLO.first() {
        return Some(HELLO.len());
    }
    let size = bytes.get(3..7)?.try_into().ok()?;
    usize::try_from(u32::from_be_bytes(size)).ok()?.checked_add(AROUND)
}

/// A method, by the numbers of its class and its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Method(u16, u16);

impl Method {
    /// The broker's first word.
    pub const CONNECTION_START: Self = Self(10, 10);
    /// A message comes from a client.
    pub const BASIC_PUBLISH: Self = Self(60, 40);
    /// A message goes to a consumer.
    pub const BASIC_DELIVER: Self = Self(60, 60);
    /// A consumer settles, or the broker confirms.
    pub const BASIC_ACK: Self = Self(60, 80);
}

/// The method of a frame, if it is one of a method.
#[must_use]
pub fn method(frame: &[u8]) -> Option<Method> {
    let number = |at: usize| Some(u16::from_be_bytes([*frame.get(at)?, *frame.get(at + 1)?]));
    match frame.first()? {
        &METHOD => Some(Method(number(7)?, number(9)?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_where_a_frame_ends_and_what_it_is() {
        let ack = b"\x01\x00\x01\x00\x00\x00\x0d\x00\x3c\x00\x50\0\0\0\0\0\0\0\x07\0\xce";
        assert_eq!(length(ack), Some(ack.len()));
        assert_eq!((length(&ack[..6]), length(&ack[..7])), (None, Some(21)));
        assert_eq!(method(ack), Some(Method::BASIC_ACK));
        let heartbeat = b"\x08\0\0\0\0\0\0\xce";
        assert_eq!((length(heartbeat), method(heartbeat)), (Some(8), None));
        assert_eq!((length(HELLO), length(b"A")), (Some(8), Some(8)));
        assert_eq!((length(b""), method(b"")), (None, None));
    }
}
