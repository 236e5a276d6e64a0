//! Commands and replies, as far as traps need them: a line, and a body where the line says so.

/// The longest line that matters.
const LONGEST: usize = 256;

/// The length of the command or reply that begins with these bytes.
pub(super) fn length(bytes: &[u8]) -> Option<usize> {
    let line = match bytes.iter().take(LONGEST).position(|byte| *byte == b'\n') {
        Some(end) => &bytes[..=end],
        None if bytes.len() < LONGEST => return None,
        None => return Some(bytes.len()),
    };
    Some(line.len() + body(line).unwrap_or(0))
}

/// The length of the body behind a line, with its end.
fn body(line: &[u8]) -> Option<usize> {
    let line = std::str::from_utf8(line).ok()?;
    let mut words = line.split_whitespace();
    let place = match words.next()? {
        "put" => 3,
        "RESERVED" | "FOUND" => 1,
        "OK" => 0,
        _ => return None,
    };
    words.nth(place)?.parse::<usize>().ok()?.checked_add(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_where_a_command_or_reply_ends() {
        for whole in [
            "put 10 0 30 3\r\na\nb\r\n",
            "RESERVED 7 3\r\na\nb\r\n",
            "OK 0\r\n\r\n",
            "INSERTED 7\r\n",
            "delete 7\r\n",
        ] {
            assert_eq!(length(whole.as_bytes()), Some(whole.len()), "{whole}");
        }
        assert_eq!(length(b"put 10 0 30 3\r"), None);
        assert_eq!(length(b"put 10 0 30 3\r\n"), Some(20));
        assert_eq!(length(&[b'x'; LONGEST]), Some(LONGEST), "whatever it is");
    }
}
