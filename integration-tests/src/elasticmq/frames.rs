//! Requests and answers of HTTP/1.1, as far as traps need them: a head, and a body as long as it says.

const HEAD_END: &[u8] = b"\r\n\r\n";

fn head(bytes: &[u8]) -> Option<&[u8]> {
    let end = bytes.windows(HEAD_END.len()).position(|four| four == HEAD_END)?;
    Some(&bytes[..end + HEAD_END.len()])
}

/// The value of a header, whose name is given in small letters.
pub(crate) fn header<'a>(head: &'a [u8], name: &str) -> Option<&'a str> {
    let head = std::str::from_utf8(head).ok()?;
    let pairs = head.split("\r\n").filter_map(|line| line.split_once(':'));
    let mut values = pairs.filter(|(found, _)| found.eq_ignore_ascii_case(name));
    values.next().map(|(_, value)| value.trim())
}

/// The length of the request or answer that begins with these bytes.
pub(crate) fn length(bytes: &[u8]) -> Option<usize> {
    let head = head(bytes)?;
    let body = header(head, "content-length").and_then(|length| length.parse::<usize>().ok());
    head.len().checked_add(body.unwrap_or(0))
}

/// The length of the head of what begins with these bytes.
pub(crate) fn head_length(bytes: &[u8]) -> Option<usize> {
    head(bytes).map(<[u8]>::len)
}

/// What a request asks for, such as `SendMessage`.
#[must_use]
pub fn action(request: &[u8]) -> Option<&str> {
    header(head(request)?, "x-amz-target")?.strip_prefix("AmazonSQS.")
}

/// True if this is an answer whose body has this in it.
#[must_use]
pub fn answers(frame: &[u8], with: &str) -> bool {
    frame.starts_with(b"HTTP/1.1 ")
        && frame.windows(with.len()).any(|found| found == with.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_where_a_request_ends_and_what_it_asks() {
        let head = "POST / HTTP/1.1\r\nX-Amz-Target: AmazonSQS.SendMessage\r\n";
        let whole = format!("{head}Content-Length: 4\r\n\r\n{{\r\n}}");
        assert_eq!(length(whole.as_bytes()), Some(whole.len()));
        assert_eq!(action(whole.as_bytes()), Some("SendMessage"));
        assert_eq!(length(head.as_bytes()), None, "more to come");
        assert!(!answers(whole.as_bytes(), "SendMessage"));
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}HTTP/1.1";
        assert_eq!((length(answer), head_length(answer)), (Some(answer.len() - 8), Some(38)));
        assert!(answers(answer, "{}") && action(answer).is_none());
    }
}
