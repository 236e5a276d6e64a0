//! Names used on the wire, the same on every broker.
//!
//! Those starting with `rr_` are RoadRunner's, so that its jobs are consumed here and ours there.
//! What this suite adds starts with `jobs-`, travels as an ordinary header, and means nothing to
//! others. Encodings differ by broker and are described on the drivers' pages.

mod headers;

use crate::JobId;

pub use headers::{read_headers, write_headers};

/// The id of the job.
pub const ID: &str = "rr_id";
/// The name of the job, which selects its handler.
pub const NAME: &str = "rr_job";
/// The headers, a JSON object of text to lists of text.
pub const HEADERS: &str = "rr_headers";
/// The pipeline the job was pushed to.
pub const PIPELINE: &str = "rr_pipeline";
/// The delay in whole seconds.
pub const DELAY: &str = "rr_delay";
/// The priority; 0 means none.
pub const PRIORITY: &str = "rr_priority";
/// Whether the job is settled when handed to a worker.
pub const AUTO_ACK: &str = "rr_auto_ack";

/// The name given to a message that bears none: RoadRunner uses the same.
pub const FOREIGN_NAME: &str = "deduced_by_rr";

/// The attempt a requeued copy is delivered as, in decimal.
pub const ATTEMPT: &str = "jobs-attempt";
/// The ordering key.
pub const ORDERING_KEY: &str = "jobs-ordering-key";

/// True of names that mean something here, so that headers of users never bear them: they are neither
/// written nor shown. Drivers may reserve more.
#[must_use]
pub fn is_reserved(name: &str) -> bool {
    match name.as_bytes() {
        [b'r', b'r', b'_', ..] => {
            [ID, NAME, HEADERS, PIPELINE, DELAY, PRIORITY, AUTO_ACK].contains(&name)
        }
        [b'j', b'o', b'b', b's', b'-', ..] => [ATTEMPT, ORDERING_KEY].contains(&name),
        _ => false,
    }
}

/// True of what can be an id, a name, an ordering key or the name of a header: what
/// [`Capabilities::admit`](crate::Capabilities::admit) asks of these.
#[must_use]
pub fn is_valid(text: &str) -> bool {
    (1..=JobId::MAX_LEN).contains(&text.len()) && control_character(text).is_none()
}

pub(crate) fn control_character(text: &str) -> Option<char> {
    // Nearly every text is plain ASCII. Looking at all bytes, without a way out, compiles to a few
    // wide instructions.
    let odd = text.bytes().fold(false, |odd, byte| odd | !matches!(byte, b' '..=b'~'));
    if !odd { None } else { text.chars().find(|c| c.is_control()) }
}
