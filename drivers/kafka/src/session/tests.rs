use jobs_core::{Health, Options, Pipeline, Queue};
use rdkafka::config::RDKafkaLogLevel;
use serde_json::json;

use super::*;
use crate::config::KafkaConfig;
use crate::publisher::Publisher;

/// Of a pipeline without brokers.
fn session() -> Session {
    let options = json!({ "brokers": ["127.0.0.1:1"], "topics": ["orders"] });
    let options = Options::from_value("p.config", options).expect("a map");
    let pipeline = Pipeline::with_options("p", "kafka", options).expect("common options");
    let shared = Options::from_value("kafka", json!({})).expect("a map");
    let config = Arc::new(KafkaConfig::read(&shared, &pipeline).expect("valid"));
    let health = Arc::new(Health::new("p"));
    let publisher = Publisher::new(&config, &health).expect("a producer");
    let (name, capabilities) = (pipeline.shared_name(), config.capabilities());
    let hub = Hub::new(name, 10, config, capabilities, publisher, health);
    let inlet = Arc::new(Queue::new().open_lane(&pipeline));
    Session::new(&Arc::new(hub), &Arc::new(Control::new()), &inlet)
}

#[test]
fn one_turn_takes_all_that_the_client_has_to_say() {
    let mut session = session();
    let mut settings = session.hub.config.consumer();
    settings.set("debug", "conf").set_log_level(RDKafkaLogLevel::Debug);
    let events = Events::new(&session.hub.health);
    let consumer = BaseConsumer::from_config_and_context(&settings, events).expect("a client");
    let consumer = Arc::new(consumer);
    session.poll(&consumer).expect("nothing fatal");
    let said = consumer.context().dealt_with();
    assert!(said > 20, "only {said} of its settings, of which it says each");
}

#[test]
fn a_client_that_never_answers_a_commit_is_given_up() {
    let mut session = session();
    let consumer = session.subscribe().expect("a client");
    let patience = session.hub.config.commit_patience();
    let owed = Owed::default();
    owed.set(Instant::now().checked_sub(patience));
    match session.fetch(&consumer, &owed) {
        End::Broken(error) => assert_eq!(error.kind(), ErrorKind::Timeout, "{error}"),
        End::Stopped => panic!("nobody told it to stop"),
    }
}
