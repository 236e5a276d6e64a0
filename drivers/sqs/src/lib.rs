//! (skeleton)

/// What `driver:` selects.
pub const NAME: &str = "sqs";
