//! Messages to columns and back. Total: whatever the columns hold, a message comes out.

use std::time::{Duration, SystemTime};

use jobs_core::{Bytes, Headers, JobId, Message};

/// A message on its way into the file.
#[derive(Debug)]
pub(crate) struct NewJob {
    pub(crate) message: Message,
    /// The message's own priority, or the pipeline's.
    pub(crate) priority: i64,
    pub(crate) headers: Option<String>,
}

/// The columns that make a message.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Content {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) priority: Option<i64>,
    pub(crate) auto_ack: bool,
    pub(crate) headers: Option<String>,
    pub(crate) payload: Vec<u8>,
}

impl NewJob {
    pub(crate) fn new(message: Message, pipeline: i64) -> Self {
        let priority = message.priority().unwrap_or(pipeline);
        let headers = encode_headers(message.headers());
        Self { message, priority, headers }
    }

    /// About what the job takes in the file, with its part of the tables.
    pub(crate) fn size(&self) -> usize {
        let message = &self.message;
        let headers = self.headers.as_ref().map_or(0, String::len);
        let row = message.payload().len() + message.id().as_str().len() + message.name().len();
        on_pages(row + headers + ROW) + STANDING
    }
}

/// A page of the file, and what it has room for. Source: the format of SQLite files, section 1.6.
const PAGE: usize = 4_096;
const PAGE_ROOM: usize = PAGE - 8;
/// The longest row that stays on one page, the least that stays of a longer one, and what one of the
/// pages for the rest of it takes.
const LONGEST_ROW: usize = PAGE - 35;
const LEAST_OF_ROW: usize = (PAGE - 12) * 32 / 255 - 23;
const OVERFLOW: usize = PAGE - 4;
/// Numbers and lengths of a row.
const ROW: usize = 40;
/// A row of the other tables, and of the pages that lead to it.
const STANDING: usize = 60;

/// What rows of that length take of the file, each: a page holds whole ones.
fn on_pages(row: usize) -> usize {
    if row <= LONGEST_ROW {
        return PAGE / (PAGE_ROOM / row.max(1)).max(1);
    }
    let (pages, rest) = ((row - LEAST_OF_ROW) / OVERFLOW, (row - LEAST_OF_ROW) % OVERFLOW);
    let local = LEAST_OF_ROW + rest;
    match local <= LONGEST_ROW {
        true => pages * PAGE + on_pages(local),
        false => (pages + 1) * PAGE + on_pages(LEAST_OF_ROW),
    }
}

impl Content {
    pub(crate) fn into_message(self) -> Message {
        Message::new(self.name, Bytes::from(self.payload))
            .with_id(JobId::from(self.id))
            .with_headers(self.headers.map_or_else(Headers::new, |text| decode_headers(&text)))
            .with_priority(self.priority.unwrap_or(0))
            .with_auto_ack(self.auto_ack)
    }
}

/// A list of pairs, because names may repeat and their order counts. None if there are no headers.
pub(crate) fn encode_headers(headers: &Headers) -> Option<String> {
    if headers.is_empty() {
        return None;
    }
    let pairs: Vec<_> = headers.iter().collect();
    Some(serde_json::to_string(&pairs).expect("text is always JSON"))
}

/// What is not a list of pairs was written by somebody else, and means nothing here.
fn decode_headers(text: &str) -> Headers {
    match serde_json::from_str::<Vec<(String, String)>>(text) {
        Ok(pairs) => pairs.into_iter().collect(),
        Err(error) => {
            tracing::warn!(%error, "headers in the file are not ours, the job runs without them");
            Headers::new()
        }
    }
}

/// The time as the file has it: whole milliseconds since 1970, rounded down.
pub(crate) fn millis(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// A time that is `after` from now in the file, rounded up: never early.
pub(crate) fn millis_after(now: SystemTime, after: Duration) -> i64 {
    let nanos = |time: Duration| i64::try_from(time.as_nanos().div_ceil(1_000_000));
    let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    nanos(now.saturating_add(after)).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stored(job: &NewJob) -> Content {
        let message = &job.message;
        Content {
            id: message.id().to_string(),
            name: message.name().to_owned(),
            priority: message.priority(),
            auto_ack: message.auto_ack(),
            headers: job.headers.clone(),
            payload: message.payload().to_vec(),
        }
    }

    proptest! {
        #[test]
        fn what_is_stored_comes_back(
            id in ".{1,40}",
            name in ".{1,40}",
            payload in prop::collection::vec(any::<u8>(), 0..200),
            headers in prop::collection::vec((".{0,10}", ".{0,20}"), 0..5),
            priority in any::<i64>(),
            auto_ack: bool,
        ) {
            let message = Message::new(name, payload)
                .with_id(id)
                .with_headers(headers.into_iter().collect())
                .with_priority(priority)
                .with_auto_ack(auto_ack);
            let again = stored(&NewJob::new(message.clone(), 10)).into_message();
            prop_assert_eq!(again.id(), message.id());
            prop_assert_eq!(again.name(), message.name());
            prop_assert_eq!(again.payload(), message.payload());
            prop_assert!(again.headers() == message.headers());
            prop_assert_eq!(again.priority(), message.priority());
            prop_assert_eq!(again.auto_ack(), message.auto_ack());
        }

        #[test]
        fn whatever_is_stored_makes_a_message(
            headers in prop::option::of(".{0,60}"),
            id in ".{0,400}",
            priority in prop::option::of(any::<i64>()),
        ) {
            let (name, payload) = (String::new(), Vec::new());
            Content { id, name, priority, auto_ack: false, headers, payload }.into_message();
        }
    }

    #[test]
    fn rows_take_whole_pages() {
        assert_eq!(on_pages(2_000), PAGE / 2);
        assert_eq!(on_pages(2_100), PAGE);
        assert_eq!(on_pages(LONGEST_ROW), PAGE);
        assert!((100_000..110_000).contains(&on_pages(100_000)));
    }

    #[test]
    fn headers_of_others_are_left_out() {
        for text in ["", "{}", r#"{"a":"b"}"#, r#"[["a"]]"#, "[[1,2]]", "null"] {
            assert!(decode_headers(text).is_empty(), "{text}");
        }
        let headers = decode_headers(r#"[["a","1"],["a","2"]]"#);
        assert_eq!(headers.get_all("a").collect::<Vec<_>>(), ["1", "2"]);
    }

    #[test]
    fn times_are_never_early() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_nanos(1_000_001);
        assert_eq!(millis(now), 1);
        assert_eq!(millis_after(now, Duration::ZERO), 2);
        assert_eq!(millis_after(now, Duration::from_millis(3)), 5);
        assert_eq!(millis_after(now, Duration::MAX), i64::MAX);
    }
}
