//! From the client's errors to the suite's: the only place that maps.

use jobs_core::{Error, ErrorKind};
use lapin::protocol::{AMQPError, AMQPErrorKind, AMQPHardError, AMQPSoftError};
use lapin::{ChannelState, ErrorKind as Client};

use crate::NAME;
use crate::topology::Target;

/// What the broker says of a message beyond its `max_message_size`.
const TOO_LARGE: &str = "larger than configured max size";
/// What the broker says of a delivery that was not settled in time.
const ACK_TIMEOUT: &str = "delivery acknowledgement on channel";

/// An error met in `operation`.
pub(crate) fn mapped(operation: &'static str, error: &lapin::Error) -> Error {
    let (kind, transient) = classify(error);
    let mapped = Error::new(kind, operation).with_driver(NAME).with_source(error.clone());
    let mapped = match error.kind() {
        Client::ProtocolError(answer) => mapped.with_context(answer.get_message().to_string()),
        _ => mapped,
    };
    if transient { mapped.transient() } else { mapped }
}

/// The answer did not come in time.
pub(crate) fn timed_out(operation: &'static str) -> Error {
    Error::new(ErrorKind::Timeout, operation).with_driver(NAME).transient()
}

/// The driver was stopped.
pub(crate) fn closed(operation: &'static str) -> Error {
    Error::new(ErrorKind::Closed, operation).with_driver(NAME)
}

/// The kind, and whether doing the same again can succeed.
fn classify(error: &lapin::Error) -> (ErrorKind, bool) {
    match error.kind() {
        Client::ProtocolError(answer) => classify_answer(answer),
        Client::IOError(error) if error.kind() == std::io::ErrorKind::InvalidData => {
            // What rustls says of a certificate it does not trust, or bytes that are not TLS.
            (ErrorKind::Connection, false)
        }
        Client::SerialisationError(_) => (ErrorKind::Codec, false),
        Client::InvalidProtocolVersion(_) | Client::AuthProviderError(_) => {
            (ErrorKind::Connection, false)
        }
        // Nothing of this says more than that the connection or channel is gone.
        _ => (ErrorKind::Connection, true),
    }
}

fn classify_answer(answer: &AMQPError) -> (ErrorKind, bool) {
    let text = answer.get_message().as_str();
    match answer.kind() {
        AMQPErrorKind::Soft(AMQPSoftError::CONTENTTOOLARGE) => (ErrorKind::PayloadTooLarge, false),
        AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED) if text.contains(TOO_LARGE) => {
            (ErrorKind::PayloadTooLarge, false)
        }
        AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED) if text.contains(ACK_TIMEOUT) => {
            (ErrorKind::LeaseLost, true)
        }
        // A queue or exchange exists with other properties, or is exclusive to another connection.
        AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED | AMQPSoftError::RESOURCELOCKED) => {
            (ErrorKind::InvalidState, false)
        }
        AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => (ErrorKind::Denied, false),
        AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND | AMQPSoftError::NOROUTE)
        | AMQPErrorKind::Hard(AMQPHardError::INVALIDPATH) => (ErrorKind::NotFound, false),
        AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) if text.ends_with("not found") => {
            (ErrorKind::NotFound, false)
        }
        AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) => (ErrorKind::Denied, false),
        // The broker shuts down, or an operator closed the connection.
        AMQPErrorKind::Hard(AMQPHardError::CONNECTIONFORCED) => (ErrorKind::Connection, true),
        AMQPErrorKind::Hard(AMQPHardError::RESOURCEERROR) => (ErrorKind::Throttled, true),
        AMQPErrorKind::Hard(AMQPHardError::NOTIMPLEMENTED) => (ErrorKind::Unsupported, false),
        AMQPErrorKind::Hard(AMQPHardError::INTERNALERROR) => (ErrorKind::Broker, true),
        AMQPErrorKind::Soft(AMQPSoftError::NOCONSUMERS) | AMQPErrorKind::Hard(_) => {
            (ErrorKind::Broker, false)
        }
    }
}

/// True for what the client answers to opening a channel when the broker closed one with the same
/// number earlier: the broker's words of then.
pub(crate) fn closed_one_before(error: &lapin::Error) -> bool {
    match error.kind() {
        Client::ProtocolError(answer) => matches!(answer.kind(), AMQPErrorKind::Soft(_)),
        // It did not understand these words.
        Client::InvalidChannelState(state, _) => *state == ChannelState::Closing,
        _ => false,
    }
}

/// The size above which the broker refuses messages, if that is what it says.
pub(crate) fn max_message_size(error: &lapin::Error) -> Option<usize> {
    let Client::ProtocolError(answer) = error.kind() else { return None };
    let (_, limit) = answer.get_message().as_str().split_once(TOO_LARGE)?;
    limit.trim().parse().ok()
}

/// True if the broker may mean a publish to this target: what it refuses is named in its words, of
/// which it sends 255 bytes.
pub(crate) fn refuses(error: &lapin::Error, target: &Target) -> bool {
    let Client::ProtocolError(answer) = error.kind() else { return false };
    let text = answer.get_message().as_str();
    let exchange = match target.exchange.as_str() {
        "" => "amq.default",
        exchange => exchange,
    };
    // Permissions of topics name both.
    let topic = !text.contains("topic '") || names(text, "topic", target.routing_key.as_str());
    topic && names(text, "exchange", exchange)
}

fn names(text: &str, what: &str, name: &str) -> bool {
    const CUT: &str = "...";
    match text.split_once(&format!("{what} '")) {
        Some((_, rest)) => {
            let whole = rest.strip_prefix(name).is_some_and(|rest| rest.starts_with('\''));
            whole || rest.strip_suffix(CUT).is_some_and(|start| name.starts_with(start))
        }
        None => text.ends_with(CUT),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(kind: AMQPErrorKind, text: &str) -> lapin::Error {
        Client::ProtocolError(AMQPError::new(kind, text.into())).into()
    }

    #[test]
    fn every_answer_has_its_kind() {
        use AMQPHardError as Hard;
        use AMQPSoftError as Soft;
        let mismatch = "PRECONDITION_FAILED - inequivalent arg 'durable' for queue 'q'";
        let late = "PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out";
        let large = "PRECONDITION_FAILED - message size 20 is larger than configured max size 10";
        let vhost = "NOT_ALLOWED - vhost nowhere not found";
        let access = "NOT_ALLOWED - access to vhost '/' refused for user 'guest'";
        let table = [
            (Soft::CONTENTTOOLARGE.into(), "", ErrorKind::PayloadTooLarge, false),
            (Soft::PRECONDITIONFAILED.into(), mismatch, ErrorKind::InvalidState, false),
            (Soft::PRECONDITIONFAILED.into(), late, ErrorKind::LeaseLost, true),
            (Soft::PRECONDITIONFAILED.into(), large, ErrorKind::PayloadTooLarge, false),
            (Soft::RESOURCELOCKED.into(), "", ErrorKind::InvalidState, false),
            (Soft::ACCESSREFUSED.into(), "", ErrorKind::Denied, false),
            (Soft::NOTFOUND.into(), "", ErrorKind::NotFound, false),
            (Soft::NOROUTE.into(), "", ErrorKind::NotFound, false),
            (Soft::NOCONSUMERS.into(), "", ErrorKind::Broker, false),
            (Hard::NOTALLOWED.into(), vhost, ErrorKind::NotFound, false),
            (Hard::NOTALLOWED.into(), access, ErrorKind::Denied, false),
            (Hard::INVALIDPATH.into(), "", ErrorKind::NotFound, false),
            (Hard::CONNECTIONFORCED.into(), "", ErrorKind::Connection, true),
            (Hard::RESOURCEERROR.into(), "", ErrorKind::Throttled, true),
            (Hard::NOTIMPLEMENTED.into(), "", ErrorKind::Unsupported, false),
            (Hard::INTERNALERROR.into(), "", ErrorKind::Broker, true),
            (Hard::FRAMEERROR.into(), "", ErrorKind::Broker, false),
        ];
        for (kind, text, expected, transient) in table {
            let error = mapped("push", &answered(kind, text));
            assert_eq!((error.kind(), error.is_retryable()), (expected, transient), "{error:?}");
        }
        assert_eq!(max_message_size(&answered(Soft::PRECONDITIONFAILED.into(), large)), Some(10));
        assert_eq!(max_message_size(&answered(Soft::PRECONDITIONFAILED.into(), late)), None);
    }

    #[test]
    fn only_the_answer_of_a_closed_channel_wears_a_connection_out() {
        use AMQPHardError as Hard;
        use AMQPSoftError as Soft;
        assert!(closed_one_before(&answered(Soft::NOTFOUND.into(), "NOT_FOUND - no queue 'q'")));
        assert!(!closed_one_before(&answered(Hard::CONNECTIONFORCED.into(), "CONNECTION_FORCED")));
        assert!(!closed_one_before(&Client::ChannelsLimitReached.into()), "all are in use");
        let closing = Client::InvalidChannelState(ChannelState::Closing, "channel.close-ok sent");
        assert!(closed_one_before(&closing.into()));
    }

    #[test]
    fn the_message_that_is_refused_is_named() {
        use AMQPSoftError as Soft;
        let refuses = |text: &str, exchange: &str, routing_key: &str| {
            let target = Target { exchange: exchange.into(), routing_key: routing_key.into() };
            super::refuses(&answered(Soft::ACCESSREFUSED.into(), text), &target)
        };
        let write =
            "ACCESS_REFUSED - write access to exchange 'x' in vhost '/' refused for user 'u'";
        let topic = "ACCESS_REFUSED - write access to topic 'k' in exchange 'x' in vhost '/' refused \
                     for user 'u'";
        let default =
            "ACCESS_REFUSED - write access to exchange 'amq.default' in vhost '/' refused";
        assert!(refuses(write, "x", "any"));
        assert!(!refuses(write, "xy", "any") && !refuses(write, "", "any"));
        assert!(refuses(topic, "x", "k"));
        assert!(!refuses(topic, "x", "other") && !refuses(topic, "y", "k"));
        assert!(refuses(default, "", "q") && !refuses(default, "x", "q"));
        let long = "n".repeat(250);
        let cut = format!("NOT_FOUND - no exchange '{}...", &long[..200]);
        assert!(refuses(&cut, &long, "any") && !refuses(&cut, "x", "any"));
        let cut = format!("ACCESS_REFUSED - write access to topic '{}...", &long[..200]);
        assert!(refuses(&cut, "x", &long) && !refuses(&cut, "x", "k"));
    }

    #[test]
    fn a_lost_connection_is_transient_and_distrust_is_not() {
        let io = |kind| lapin::Error::from(std::io::Error::from(kind));
        let lost = mapped("push", &io(std::io::ErrorKind::ConnectionReset));
        assert_eq!((lost.kind(), lost.is_retryable()), (ErrorKind::Connection, true));
        let distrust = mapped("connect", &io(std::io::ErrorKind::InvalidData));
        assert_eq!((distrust.kind(), distrust.is_retryable()), (ErrorKind::Connection, false));
        let silent = mapped("push", &Client::MissingHeartbeatError.into());
        assert!(silent.is_retryable());
    }
}
