//! Which drivers this build has.

use jobs_core::Registry;

/// The drivers chosen by the features of this crate. Add others with
/// [`Registry::register`].
#[must_use]
pub fn default_registry() -> Registry {
    #[allow(unused_mut, reason = "without any driver's feature nothing is added")]
    let mut registry = Registry::new();
    #[cfg(feature = "amqp")]
    registry.register(jobs_amqp::constructor()).expect("our drivers have different names");
    #[cfg(feature = "beanstalk")]
    registry.register(jobs_beanstalk::constructor()).expect("our drivers have different names");
    #[cfg(feature = "kafka")]
    registry.register(jobs_kafka::constructor()).expect("our drivers have different names");
    #[cfg(feature = "local")]
    registry.register(jobs_local::constructor()).expect("our drivers have different names");
    #[cfg(feature = "memory")]
    registry.register(jobs_memory::constructor()).expect("our drivers have different names");
    #[cfg(feature = "sqs")]
    registry.register(jobs_sqs::constructor()).expect("our drivers have different names");
    registry
}
