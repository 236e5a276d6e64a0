//! Names used on the wire, the same on every broker.
//!
//! Those starting with `rr_` are RoadRunner's, so that its jobs are consumed here and ours there.
//! What this suite adds starts with `jobs-`, travels as an ordinary header, and means nothing to
//! others. Encodings differ by broker and are described on the drivers' pages.

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
