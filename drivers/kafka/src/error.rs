//! From the client's errors to the suite's: the only place that maps.

use jobs_core::{Error, ErrorKind};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

use crate::NAME;

/// A push that failed, by its delivery report or before it was sent. Says whether the message may
/// be stored.
pub(crate) fn push(error: &KafkaError) -> Error {
    let mapped = failed("push", error);
    if may_be_stored(error) { mapped.maybe_stored() } else { mapped }
}

/// The client says of a record that it is stored, and not where: it took it for granted, because a later one
/// of the partition is.
///
/// A broker that has just begun to lead a partition refuses the first request of a producer and takes the
/// second, if it learns of the partition in between (KAFKA-15591). Then the first is stored nowhere.
pub(crate) fn unproved(topic: &str) -> Error {
    let error = Error::new(ErrorKind::Broker, "push").with_driver(NAME).transient().maybe_stored();
    error.with_context(format!("topic {topic}: no broker has said where the record is stored"))
}

/// Any other failure, met in `operation`.
pub(crate) fn failed(operation: &'static str, error: &KafkaError) -> Error {
    let (kind, transient) = classify(error);
    let mapped = Error::new(kind, operation).with_driver(NAME);
    let mapped = match error {
        // The client repeats the value it does not take, which may be a password.
        KafkaError::ClientConfig(_, reason, name, value) => {
            let reason =
                if value.is_empty() { reason.clone() } else { reason.replace(value, "…") };
            mapped.with_context(format!("`{name}`: {reason}"))
        }
        _ => mapped.with_source(error.clone()),
    };
    if transient { mapped.transient() } else { mapped }
}

/// What a broker answered for one topic, group or partition, or the client told by a callback.
pub(crate) fn answered(operation: &'static str, code: Code) -> Error {
    failed(operation, &KafkaError::Global(code))
}

/// The answer did not come in time.
pub(crate) fn timed_out(operation: &'static str) -> Error {
    Error::new(ErrorKind::Timeout, operation).with_driver(NAME).transient()
}

/// The driver was stopped.
pub(crate) fn closed(operation: &'static str) -> Error {
    Error::new(ErrorKind::Closed, operation).with_driver(NAME)
}

/// True if the producer that says this sends nothing any more: it takes a new one.
///
/// An idempotent producer numbers its messages. Once it and a broker disagree about the numbers,
/// none of them can be sure what was stored.
pub(crate) fn is_fatal(error: &KafkaError) -> bool {
    matches!(error, KafkaError::MessageConsumptionFatal(_))
        || code(error).is_some_and(is_fatal_code)
}

/// As [`is_fatal`], for what the client tells by a callback.
pub(crate) fn is_fatal_code(code: Code) -> bool {
    matches!(
        code,
        Code::Fatal
            | Code::Inconsistent
            | Code::GaplessGuarantee
            | Code::Fenced
            | Code::OutOfOrderSequenceNumber
            | Code::UnknownProducerId
            | Code::InvalidProducerEpoch
            | Code::InvalidProducerIdMapping
            | Code::ProducerFenced
            | Code::TransactionCoordinatorFenced
    )
}

/// True if a commit was refused for its metadata, and may pass without.
pub(crate) fn is_metadata_too_large(error: &KafkaError) -> bool {
    code(error) == Some(Code::OffsetMetadataTooLarge)
}

fn code(error: &KafkaError) -> Option<Code> {
    match error {
        // The client's own function knows no code of these.
        KafkaError::AdminOp(code) => Some(*code),
        _ => error.rdkafka_error_code(),
    }
}

/// False only where the client is sure: the message was never sent, or a broker refused it.
///
/// A delivery report has no more than the error. One that timed out may have waited for its
/// answer, or to be sent; the client gives both the same code.
fn may_be_stored(error: &KafkaError) -> bool {
    let Some(code) = code(error) else {
        // The report was lost with its producer. What else has no code was met before sending.
        return matches!(error, KafkaError::Canceled);
    };
    !matches!(
        code,
        // Said by the client before it sends.
        Code::QueueFull
            | Code::PurgeQueue
            | Code::UnknownTopic
            | Code::UnknownPartition
            | Code::InvalidArgument
            | Code::NotImplemented
            | Code::UnsupportedFeature
            | Code::ReadOnly
            | Code::State
            | Code::Conflict
            // Said by a broker before it stores.
            | Code::UnknownTopicOrPartition
            | Code::UnknownTopicId
            | Code::InvalidTopic
            | Code::InvalidMessage
            | Code::InvalidMessageSize
            | Code::InvalidRecord
            | Code::InvalidTimestamp
            | Code::InvalidRequiredAcks
            | Code::InvalidRequest
            | Code::MessageSizeTooLarge
            | Code::MessageBatchTooLarge
            | Code::UnsupportedForMessageFormat
            | Code::UnsupportedCompressionType
            | Code::UnsupportedVersion
            | Code::PolicyViolation
            | Code::NotEnoughReplicas
            | Code::TopicAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::TransactionalIdAuthorizationFailed
    )
}

/// The kind, and whether doing the same again can succeed.
fn classify(error: &KafkaError) -> (ErrorKind, bool) {
    match error {
        // Files that cannot be read, and values that do not fit together.
        KafkaError::ClientConfig(..) | KafkaError::ClientCreation(_) => (ErrorKind::Config, false),
        KafkaError::Nul(_) => (ErrorKind::InvalidMessage, false),
        KafkaError::Canceled => (ErrorKind::Connection, true),
        KafkaError::NoMessageReceived => (ErrorKind::Timeout, true),
        KafkaError::Transaction(error) => {
            let (kind, transient) = classify_code(error.code());
            (kind, transient || error.is_retriable() || error.is_fatal())
        }
        _ => code(error).map_or((ErrorKind::Broker, false), classify_code),
    }
}

fn classify_code(code: Code) -> (ErrorKind, bool) {
    match code {
        // A new producer or consumer goes on.
        code if is_fatal_code(code) => (ErrorKind::Broker, true),

        Code::UnknownTopic
        | Code::UnknownPartition
        | Code::UnknownTopicOrPartition
        | Code::UnknownTopicId
        | Code::UnknownGroup
        | Code::GroupIdNotFound
        | Code::ResourceNotFound => (ErrorKind::NotFound, false),

        Code::MessageSizeTooLarge | Code::MessageBatchTooLarge | Code::InvalidMessageSize => {
            (ErrorKind::PayloadTooLarge, false)
        }
        Code::InvalidRecord | Code::InvalidTimestamp | Code::InvalidMessage => {
            (ErrorKind::InvalidMessage, false)
        }

        Code::Authentication
        | Code::SaslAuthenticationFailed
        | Code::UnsupportedSASLMechanism
        | Code::IllegalSASLState
        | Code::UnacceptableCredential
        | Code::SecurityDisabled
        | Code::TopicAuthorizationFailed
        | Code::GroupAuthorizationFailed
        | Code::ClusterAuthorizationFailed
        | Code::TransactionalIdAuthorizationFailed
        | Code::PolicyViolation => (ErrorKind::Denied, false),

        // Too many of ours, or of everybody's.
        Code::QueueFull
        | Code::ThrottlingQuotaExceeded
        | Code::NotEnoughReplicas
        | Code::NotEnoughReplicasAfterAppend
        | Code::ISRInsufficient
        | Code::GroupMaxSizeReached => (ErrorKind::Throttled, true),
        Code::KafkaStorageError | Code::LogDirNotFound => (ErrorKind::Full, true),

        Code::MessageTimedOut
        | Code::OperationTimedOut
        | Code::TimedOutQueue
        | Code::RequestTimedOut => (ErrorKind::Timeout, true),

        // The broker's certificate is not trusted, or ours not by it.
        Code::SSL => (ErrorKind::Connection, false),
        Code::BrokerTransportFailure
        | Code::AllBrokersDown
        | Code::Resolve
        | Code::CriticalSystemResource
        | Code::NetworkException
        | Code::BrokerNotAvailable
        | Code::BrokerDestroy
        | Code::DestroyBroker
        | Code::UnknownBroker
        | Code::LeaderNotAvailable
        | Code::NotLeaderForPartition
        | Code::ReplicaNotAvailable
        | Code::PreferredLeaderNotAvailable
        | Code::EligibleLeadersNotAvailable
        | Code::FencedLeaderEpoch
        | Code::UnknownLeaderEpoch
        | Code::StaleBrokerEpoch
        | Code::StaleControllerEpoch
        | Code::NotController
        | Code::CoordinatorLoadInProgress
        | Code::CoordinatorNotAvailable
        | Code::NotCoordinator
        | Code::WaitingForCoordinator
        | Code::OffsetNotAvailable
        | Code::RebootstrapRequired
        | Code::PurgeQueue
        | Code::PurgeInflight => (ErrorKind::Connection, true),

        // The partition is another member's.
        Code::IllegalGeneration
        | Code::UnknownMemberId
        | Code::FencedInstanceId
        | Code::FencedMemberEpoch
        | Code::StaleMemberEpoch
        | Code::UnreleasedInstanceId
        | Code::AssignmentLost
        | Code::PollExceeded => (ErrorKind::LeaseLost, false),
        Code::RebalanceInProgress
        | Code::UnstableOffsetCommit
        | Code::ConcurrentTransactions
        | Code::ReassignmentInProgress
        | Code::InProgress
        | Code::PreviousInProgress
        | Code::Retry
        | Code::Interrupted
        | Code::WaitCache
        | Code::Outdated
        | Code::Unknown => (ErrorKind::Broker, true),

        Code::TopicAlreadyExists
        | Code::Conflict
        | Code::State
        | Code::ExistingSubscription
        | Code::NonEmptyGroup
        | Code::InconsistentGroupProtocol
        | Code::InvalidSessionTimeout
        | Code::UnsupportedAssignor => (ErrorKind::InvalidState, false),
        Code::NotImplemented
        | Code::UnsupportedFeature
        | Code::UnsupportedVersion
        | Code::UnsupportedForMessageFormat
        | Code::UnsupportedCompressionType
        | Code::TopicDeletionDisabled => (ErrorKind::Unsupported, false),
        Code::InvalidArgument
        | Code::InvalidTopic
        | Code::InvalidGroupId
        | Code::InvalidPartitions
        | Code::InvalidReplicationFactor
        | Code::InvalidConfig => (ErrorKind::Config, false),
        Code::BadMessage | Code::BadCompression => (ErrorKind::Codec, false),

        _ => (ErrorKind::Broker, false),
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    fn delivered(code: Code) -> Error {
        push(&KafkaError::MessageProduction(code))
    }

    #[test]
    fn every_answer_has_its_kind() {
        use ErrorKind as Kind;
        let table: [(&[Code], Kind, bool); 18] = [
            (
                &[
                    Code::Fatal,
                    Code::Inconsistent,
                    Code::GaplessGuarantee,
                    Code::Fenced,
                    Code::OutOfOrderSequenceNumber,
                    Code::UnknownProducerId,
                    Code::InvalidProducerEpoch,
                    Code::InvalidProducerIdMapping,
                    Code::ProducerFenced,
                    Code::TransactionCoordinatorFenced,
                ],
                Kind::Broker,
                true,
            ),
            (
                &[
                    Code::UnknownTopic,
                    Code::UnknownPartition,
                    Code::UnknownTopicOrPartition,
                    Code::UnknownTopicId,
                    Code::UnknownGroup,
                    Code::GroupIdNotFound,
                    Code::ResourceNotFound,
                ],
                Kind::NotFound,
                false,
            ),
            (
                &[Code::MessageSizeTooLarge, Code::MessageBatchTooLarge, Code::InvalidMessageSize],
                Kind::PayloadTooLarge,
                false,
            ),
            (
                &[Code::InvalidRecord, Code::InvalidTimestamp, Code::InvalidMessage],
                Kind::InvalidMessage,
                false,
            ),
            (
                &[
                    Code::Authentication,
                    Code::SaslAuthenticationFailed,
                    Code::UnsupportedSASLMechanism,
                    Code::IllegalSASLState,
                    Code::UnacceptableCredential,
                    Code::SecurityDisabled,
                    Code::TopicAuthorizationFailed,
                    Code::GroupAuthorizationFailed,
                    Code::ClusterAuthorizationFailed,
                    Code::TransactionalIdAuthorizationFailed,
                    Code::PolicyViolation,
                ],
                Kind::Denied,
                false,
            ),
            (
                &[
                    Code::QueueFull,
                    Code::ThrottlingQuotaExceeded,
                    Code::NotEnoughReplicas,
                    Code::NotEnoughReplicasAfterAppend,
                    Code::ISRInsufficient,
                    Code::GroupMaxSizeReached,
                ],
                Kind::Throttled,
                true,
            ),
            (&[Code::KafkaStorageError, Code::LogDirNotFound], Kind::Full, true),
            (
                &[
                    Code::MessageTimedOut,
                    Code::OperationTimedOut,
                    Code::TimedOutQueue,
                    Code::RequestTimedOut,
                ],
                Kind::Timeout,
                true,
            ),
            (&[Code::SSL], Kind::Connection, false),
            (
                &[
                    Code::BrokerTransportFailure,
                    Code::AllBrokersDown,
                    Code::Resolve,
                    Code::NetworkException,
                    Code::LeaderNotAvailable,
                    Code::NotLeaderForPartition,
                    Code::NotCoordinator,
                    Code::PurgeQueue,
                    Code::PurgeInflight,
                ],
                Kind::Connection,
                true,
            ),
            (
                &[
                    Code::IllegalGeneration,
                    Code::UnknownMemberId,
                    Code::FencedInstanceId,
                    Code::AssignmentLost,
                    Code::PollExceeded,
                ],
                Kind::LeaseLost,
                false,
            ),
            (
                &[Code::RebalanceInProgress, Code::InProgress, Code::Retry, Code::Unknown],
                Kind::Broker,
                true,
            ),
            (
                &[Code::TopicAlreadyExists, Code::Conflict, Code::State, Code::NonEmptyGroup],
                Kind::InvalidState,
                false,
            ),
            (
                &[Code::NotImplemented, Code::UnsupportedVersion, Code::UnsupportedCompressionType],
                Kind::Unsupported,
                false,
            ),
            (
                &[Code::InvalidArgument, Code::InvalidTopic, Code::InvalidReplicationFactor],
                Kind::Config,
                false,
            ),
            (&[Code::BadMessage, Code::BadCompression], Kind::Codec, false),
            (&[Code::OffsetMetadataTooLarge, Code::Fail], Kind::Broker, false),
            (&[Code::CriticalSystemResource, Code::WaitingForCoordinator], Kind::Connection, true),
        ];
        for (codes, kind, transient) in table {
            for code in codes {
                let error = answered("settle", *code);
                let found = (error.kind(), error.is_retryable(), error.operation());
                assert_eq!(found, (kind, transient, "settle"), "{code:?}");
                let error = failed("connect", &KafkaError::AdminOp(*code));
                assert_eq!((error.kind(), error.is_retryable()), (kind, transient), "{code:?}");
                assert!(!error.may_be_stored());
            }
        }
    }

    #[test]
    fn failures_without_a_code_have_their_kind() {
        let nul = std::ffi::CString::new("a\0b").expect_err("a zero byte");
        for (error, kind, transient) in [
            (KafkaError::ClientCreation("no file".into()), ErrorKind::Config, false),
            (KafkaError::Nul(nul), ErrorKind::InvalidMessage, false),
            (KafkaError::Canceled, ErrorKind::Connection, true),
            (KafkaError::NoMessageReceived, ErrorKind::Timeout, true),
            (KafkaError::Subscription("no pattern".into()), ErrorKind::Broker, false),
        ] {
            let mapped = failed("run", &error);
            assert_eq!((mapped.kind(), mapped.is_retryable()), (kind, transient), "{error:?}");
            let source = mapped.source().and_then(|source| source.downcast_ref::<KafkaError>());
            assert_eq!(source, Some(&error), "the native error is reachable");
        }
    }

    #[test]
    fn a_push_is_uncertain_unless_it_was_refused_or_never_sent() {
        for certain in [
            Code::QueueFull,
            Code::PurgeQueue,
            Code::UnknownTopic,
            Code::UnknownPartition,
            Code::InvalidArgument,
            Code::UnknownTopicOrPartition,
            Code::InvalidTopic,
            Code::InvalidRecord,
            Code::MessageSizeTooLarge,
            Code::MessageBatchTooLarge,
            Code::PolicyViolation,
            Code::NotEnoughReplicas,
            Code::TopicAuthorizationFailed,
            Code::ClusterAuthorizationFailed,
        ] {
            assert!(!delivered(certain).may_be_stored(), "{certain:?}");
        }
        for uncertain in [
            Code::MessageTimedOut,
            Code::PurgeInflight,
            Code::BrokerTransportFailure,
            Code::RequestTimedOut,
            Code::NotEnoughReplicasAfterAppend,
            Code::KafkaStorageError,
            Code::Fatal,
            Code::OutOfOrderSequenceNumber,
            Code::Unknown,
            Code::Fail,
        ] {
            assert!(delivered(uncertain).may_be_stored(), "{uncertain:?}");
        }
        assert!(push(&KafkaError::Canceled).may_be_stored(), "its report was lost");
        assert!(!push(&KafkaError::ClientCreation("no file".into())).may_be_stored());
    }

    #[test]
    fn fatal_errors_are_told_apart() {
        let produced = KafkaError::MessageProduction;
        assert!(is_fatal(&produced(Code::Fatal)));
        assert!(is_fatal(&produced(Code::OutOfOrderSequenceNumber)));
        assert!(is_fatal(&KafkaError::MessageConsumptionFatal(Code::FencedInstanceId)));
        assert!(!is_fatal(&produced(Code::MessageTimedOut)));
        assert!(!is_fatal(&KafkaError::Canceled));
        let fatal = delivered(Code::Fatal);
        assert!(fatal.is_retryable() && fatal.may_be_stored());
    }

    #[test]
    fn special_answers_are_told_apart() {
        let commit = KafkaError::ConsumerCommit;
        assert!(is_metadata_too_large(&commit(Code::OffsetMetadataTooLarge)));
        assert!(!is_metadata_too_large(&commit(Code::RebalanceInProgress)));
        assert!(timed_out("state").is_retryable() && !closed("push").is_retryable());
        assert_eq!(closed("push").kind(), ErrorKind::Closed);
    }

    #[test]
    fn a_value_that_the_client_refuses_is_not_shown() {
        let mut client = rdkafka::ClientConfig::new();
        client.set("acks", "hunter2");
        let refused = client.create_native_config().err().expect("no number");
        assert!(format!("{refused:?}").contains("hunter2"), "else nothing is shown by this test");
        let error = failed("connect", &refused);
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(format!("{error} {error:?}").contains("`acks`"), "{error}");
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
        assert!(error.source().is_none());
    }
}
