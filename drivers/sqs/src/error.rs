//! From the client's errors to the suite's: the only place that maps.
//!
//! A service's message may repeat the request that it was signed for, session token included, and
//! the client's own errors hold whole answers. So neither is passed on: what is kept of an answer
//! are its code, the beginning of its message and the number of the request.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

use aws_sdk_sqs::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_sqs::types::BatchResultErrorEntry;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_types::error::ErrorMetadata;
use jobs_core::{Error, ErrorKind};

use crate::NAME;

/// Why a request, or an entry of one, failed.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    kind: ErrorKind,
    transient: bool,
    /// For what was pushed: it may be in the queue all the same.
    may_be_stored: bool,
    context: String,
    source: Source,
}

#[derive(Clone, Debug)]
enum Source {
    Answer(ErrorMetadata),
    /// There was none.
    Transport(Transport),
}

/// Why no answer came, as the client says.
#[derive(Clone, Debug)]
struct Transport(Arc<dyn StdError + Send + Sync>);

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the request was not answered")
    }
}

impl StdError for Transport {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&*self.0)
    }
}

impl Failure {
    /// Why a request failed.
    pub(crate) fn of<E>(error: SdkError<E, HttpResponse>) -> Self
    where
        E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
    {
        use ErrorKind::{Config, Connection, Timeout};
        let status = error.raw_response().map(|answer| answer.status().as_u16());
        let what = error.to_string();
        match &error {
            SdkError::ServiceError(answer) => return refused(answer.err().meta(), status),
            // The client's text may repeat what came.
            SdkError::ResponseError(_) => return garbled(status),
            _ => {}
        }
        let not_sent = matches!(error, SdkError::ConstructionFailure(_));
        let timed_out = match &error {
            SdkError::TimeoutError(_) => true,
            SdkError::DispatchFailure(failure) => failure.is_timeout(),
            _ => false,
        };
        let Ok(source) = error.into_source() else { return garbled(status) };
        let chain = chain(&*source);
        let has = |text| chain.contains(text);
        // The connector has this text only; it tells the client's kind of the error.
        let unreachable = has("client error (Connect)");
        let credentials = has("credential") || has("identity resol");
        let (kind, transient, may_be_stored, reason) = match () {
            () if not_sent => (Config, false, false, "the request cannot be made"),
            () if credentials => {
                let reason = "no credentials: neither the options nor the environment has any \
                              that can be loaded";
                (ErrorKind::Denied, timed_out || has("timed out"), false, reason)
            }
            () if has("invalid peer certificate") => {
                (Connection, false, false, "the certificate is not trusted")
            }
            () if unreachable => (Connection, true, false, "the service cannot be reached"),
            () if timed_out => (Timeout, true, true, "no answer in time"),
            () => (Connection, true, true, "the connection broke"),
        };
        Self {
            kind,
            transient,
            may_be_stored,
            context: format!("{reason}: {what}: {chain}"),
            source: Source::Transport(Transport(source.into())),
        }
    }

    /// Why an entry of a batch failed.
    pub(crate) fn of_entry(entry: &BatchResultErrorEntry) -> Self {
        let answer = ErrorMetadata::builder().code(entry.code());
        let answer = match entry.message() {
            Some(message) => answer.message(message),
            None => answer,
        };
        // As a request that fails so would be answered.
        refused(&answer.build(), Some(if entry.sender_fault() { 400 } else { 500 }))
    }

    /// The error of what was being done.
    pub(crate) fn error(&self, operation: &'static str) -> Error {
        let error = Error::new(self.kind, operation).with_driver(NAME);
        let error = error.with_context(self.context.clone());
        let error = match &self.source {
            Source::Answer(answer) => error.with_source(answer.clone()),
            Source::Transport(transport) => error.with_source(transport.clone()),
        };
        let error = if self.transient { error.transient() } else { error };
        if self.may_be_stored { error.maybe_stored() } else { error }
    }
}

/// The error of a request.
pub(crate) fn failed<E>(operation: &'static str, error: SdkError<E, HttpResponse>) -> Error
where
    E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
{
    Failure::of(error).error(operation)
}

/// The error of an entry of a batch.
pub(crate) fn entry_failed(operation: &'static str, entry: &BatchResultErrorEntry) -> Error {
    Failure::of_entry(entry).error(operation)
}

/// Whether the credentials are good, but not for this request.
pub(crate) fn lacks_permission<E: ProvideErrorMetadata>(error: &SdkError<E, HttpResponse>) -> bool {
    matches!(error.code().map(plain), Some("AccessDenied" | "AccessDeniedException"))
}

/// The driver was stopped.
pub(crate) fn closed(operation: &'static str) -> Error {
    Error::new(ErrorKind::Closed, operation).with_driver(NAME)
}

/// The answer did not come in time.
pub(crate) fn timed_out(operation: &'static str) -> Error {
    Error::new(ErrorKind::Timeout, operation).with_driver(NAME).transient()
}

/// The right to a message ended, by this machine's clock.
pub(crate) fn lease_lost(operation: &'static str) -> Error {
    Error::new(ErrorKind::LeaseLost, operation).with_driver(NAME)
}

/// A message has more bytes, as the service counts, than the service takes.
pub(crate) fn too_large(operation: &'static str, size: usize, limit: usize) -> Error {
    let context = format!(
        "at most {limit} bytes with attributes and headers, found {size} (a payload that is no \
         legal text takes a third more)"
    );
    Error::new(ErrorKind::PayloadTooLarge, operation).with_driver(NAME).with_context(context)
}

/// Errors of the client, outermost first.
fn chain(error: &(dyn StdError + 'static)) -> String {
    let errors = std::iter::successors(Some(error), |&error| error.source());
    let mut texts: Vec<_> = errors.map(ToString::to_string).collect();
    texts.dedup();
    texts.join(": ")
}

/// The code without what older protocols put before it.
fn plain(code: &str) -> &str {
    let code = code.rsplit('#').next().unwrap_or(code);
    code.strip_prefix("AWS.SimpleQueueService.").unwrap_or(code)
}

/// A short beginning of the service's message, which may repeat the signed request further on.
fn shown(message: &str) -> String {
    const LONGEST: usize = 300;
    let line = message.lines().next().unwrap_or_default();
    let end =
        ["The Canonical String", "Authorization=", "X-Amz-Security-Token", "x-amz-security-token"]
            .iter()
            .filter_map(|text| line.find(text))
            .min()
            .unwrap_or(line.len());
    line[..end].trim_end().chars().take(LONGEST).collect()
}

/// An answer that cannot be read: the request may have been carried out.
fn garbled(status: Option<u16>) -> Failure {
    let status = status.map(|status| format!(" (status {status})")).unwrap_or_default();
    Failure {
        kind: ErrorKind::Connection,
        transient: true,
        may_be_stored: true,
        context: format!("the answer broke off or makes no sense{status}"),
        source: Source::Answer(ErrorMetadata::default()),
    }
}

/// What an answer means that says no.
fn refused(answer: &ErrorMetadata, status: Option<u16>) -> Failure {
    let status = status.unwrap_or(400);
    let code = answer.code().map(plain).unwrap_or_default();
    if code.is_empty() && (200..300).contains(&status) {
        return garbled(Some(status));
    }
    let message = answer.message().unwrap_or_default();
    let verdict = verdict(code, status, message);
    let text = shown(message);
    let name = if code.is_empty() { format!("status {status}") } else { code.to_owned() };
    let said = if text.is_empty() { name } else { format!("{name}: {text}") };
    let context = match verdict.reason {
        "" => said,
        reason => format!("{reason} ({said})"),
    };
    let mut source = ErrorMetadata::builder().message(text);
    if let Some(code) = answer.code() {
        source = source.code(code);
    }
    if let Some(request) = answer.extra(REQUEST_ID) {
        source = source.custom(REQUEST_ID, request);
    }
    Failure {
        kind: verdict.kind,
        transient: verdict.transient,
        may_be_stored: verdict.may_be_stored,
        context,
        source: Source::Answer(source.build()),
    }
}

/// Where the client keeps the number of a request.
const REQUEST_ID: &str = "aws_request_id";

struct Verdict {
    kind: ErrorKind,
    transient: bool,
    may_be_stored: bool,
    /// In our words; empty where the service's say all.
    reason: &'static str,
}

impl Verdict {
    fn is(kind: ErrorKind, reason: &'static str) -> Self {
        Self { kind, transient: false, may_be_stored: false, reason }
    }

    fn passing(self) -> Self {
        Self { transient: true, ..self }
    }

    fn unsure(self) -> Self {
        Self { transient: true, may_be_stored: true, ..self }
    }
}

/// Codes of the service's two protocols, and of servers that are like it.
fn verdict(code: &str, status: u16, message: &str) -> Verdict {
    use ErrorKind::{
        Broker, Config, Denied, InvalidMessage, InvalidState, LeaseLost, NotFound, PayloadTooLarge,
        Throttled, Timeout, Unsupported,
    };
    const CLOCK: &str =
        "this machine's clock is wrong: it differs from the service's by more than it allows";
    const REGION: &str = "wrong region: the queue, or the endpoint, belongs to another";
    let message = message.to_ascii_lowercase();
    let says = |text| message.contains(text);
    if says("credential should be scoped") || says("credential scope") {
        return Verdict::is(Denied, REGION);
    }
    match code {
        "QueueDoesNotExist" | "NonExistentQueue" | "ResourceNotFoundException" => {
            Verdict::is(NotFound, "no such queue, or none that these credentials may see")
        }
        "QueueDeletedRecently" => {
            Verdict::is(InvalidState, "the queue was deleted less than a minute ago").passing()
        }
        "QueueNameExists" | "QueueAlreadyExists" => {
            Verdict::is(InvalidState, "the queue exists with other attributes")
        }
        "AccessDenied"
        | "AccessDeniedException"
        | "AuthorizationError"
        | "UnauthorizedOperation" => Verdict::is(Denied, "not permitted"),
        "InvalidClientTokenId"
        | "UnrecognizedClientException"
        | "InvalidAccessKeyId"
        | "MissingAuthenticationToken"
        | "MissingAuthenticationTokenException"
        | "IncompleteSignature"
        | "IncompleteSignatureException"
        | "InvalidSecurity"
        | "OptInRequired" => Verdict::is(Denied, "the credentials are not accepted"),
        "ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired" => {
            Verdict::is(Denied, "the session token has expired")
        }
        "RequestTimeTooSkewed" | "RequestExpired" | "RequestInTheFuture" => {
            Verdict::is(Denied, CLOCK)
        }
        "SignatureDoesNotMatch" | "InvalidSignatureException" | "InvalidSignature" => {
            let clock = says("signature expired") || says("not yet current");
            let reason = if clock { CLOCK } else { "the secret is wrong: it signs otherwise" };
            Verdict::is(Denied, reason)
        }
        "AuthorizationHeaderMalformed" | "PermanentRedirect" => Verdict::is(Denied, REGION),
        "OverLimit" => {
            Verdict::is(Throttled, "too many messages in flight, or another quota").passing()
        }
        "Throttling"
        | "ThrottlingException"
        | "ThrottledException"
        | "RequestThrottled"
        | "RequestThrottledException"
        | "TooManyRequestsException"
        | "RequestLimitExceeded"
        | "BandwidthLimitExceeded"
        | "LimitExceededException"
        | "SlowDown"
        | "KmsThrottled"
        | "KMS.ThrottlingException" => Verdict::is(Throttled, "").passing(),
        "InvalidMessageContents" => Verdict::is(InvalidMessage, ""),
        "BatchRequestTooLong" | "MessageTooLong" => Verdict::is(PayloadTooLarge, ""),
        "ReceiptHandleIsInvalid" | "InvalidIdFormat" | "MessageNotInflight" => {
            Verdict::is(LeaseLost, "")
        }
        "UnsupportedOperation" | "UnknownOperationException" | "InvalidAction" => {
            Verdict::is(Unsupported, "")
        }
        "RequestTimeout" | "RequestTimeoutException" => Verdict::is(Timeout, "").unsure(),
        code if code.starts_with("KMS.") || code.starts_with("Kms") => {
            Verdict::is(Denied, "the key that encrypts the queue cannot be used")
        }
        // The codes of these differ, and say little: ElasticMQ's are those of an attribute.
        _ if says("must be shorter than") || says("messagetoolong") => {
            Verdict::is(PayloadTooLarge, "")
        }
        _ if says("invalidmessagecontents") => Verdict::is(InvalidMessage, ""),
        _ if says("receipt handle") || says("receipthandle") => Verdict::is(LeaseLost, ""),
        "InvalidAttributeName" | "InvalidAttributeValue" => Verdict::is(Config, ""),
        _ => match status {
            301 | 302 | 307 | 308 => Verdict::is(Denied, REGION),
            401 | 403 => Verdict::is(Denied, ""),
            404 => Verdict::is(NotFound, ""),
            408 => Verdict::is(Timeout, "").unsure(),
            413 => Verdict::is(PayloadTooLarge, ""),
            429 => Verdict::is(Throttled, "").passing(),
            500.. => Verdict::is(Broker, "").unsure(),
            _ => Verdict::is(Broker, ""),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use aws_sdk_sqs::config::{BehaviorVersion, Credentials, Region, retry::RetryConfig};
    use aws_sdk_sqs::operation::send_message::SendMessageError;
    use aws_smithy_http_client::tls::{self, rustls_provider::CryptoMode};
    use aws_smithy_runtime_api::client::result::ConnectorError;
    use aws_smithy_types::body::SdkBody;

    use super::*;

    type PushError = SdkError<SendMessageError, HttpResponse>;

    fn answer(status: u16) -> HttpResponse {
        let body = SdkBody::from("the body with t0ken");
        HttpResponse::new(status.try_into().expect("a status"), body)
    }

    fn service(status: u16, code: &str, message: &str) -> PushError {
        let answered = ErrorMetadata::builder().message(message).custom(REQUEST_ID, "r-1");
        let answered = if code.is_empty() { answered } else { answered.code(code) };
        SdkError::service_error(SendMessageError::generic(answered.build()), answer(status))
    }

    fn found(error: &Error) -> (ErrorKind, bool, bool) {
        (error.kind(), error.is_retryable(), error.may_be_stored())
    }

    #[test]
    fn every_answer_has_its_outcome() {
        use ErrorKind::{
            Broker, Config, Connection, Denied, InvalidMessage, InvalidState, LeaseLost, NotFound,
            PayloadTooLarge, Throttled, Timeout, Unsupported,
        };
        let expired = "Signature expired: 20261122T100000Z is now earlier than 20261122T101500Z";
        let scope = "Credential should be scoped to a valid region, not 'eu-north-1'.";
        let shorter = "One or more parameters are invalid. Reason: Message must be shorter than \
                       262144 bytes.";
        let handle = "Value AQ for parameter ReceiptHandle is invalid. Reason: Message does not \
                      exist or is not available for visibility timeout change.";
        let final_ = (false, false);
        let passing = (true, false);
        let unsure = (true, true);
        for (status, code, message, kind, (transient, stored), text) in [
            (400, "QueueDoesNotExist", "", NotFound, final_, "no such queue"),
            (400, "AWS.SimpleQueueService.NonExistentQueue", "", NotFound, final_, "no such queue"),
            (400, "com.amazonaws.sqs#QueueDoesNotExist", "", NotFound, final_, "no such queue"),
            (404, "ResourceNotFoundException", "", NotFound, final_, "no such queue"),
            (
                400,
                "AWS.SimpleQueueService.QueueDeletedRecently",
                "",
                InvalidState,
                passing,
                "minute",
            ),
            (400, "QueueNameExists", "", InvalidState, final_, "other attributes"),
            (400, "QueueAlreadyExists", "", InvalidState, final_, "other attributes"),
            (403, "AccessDenied", "User: arn is not authorized", Denied, final_, "User: arn"),
            (400, "AccessDeniedException", "", Denied, final_, "not permitted"),
            (403, "InvalidClientTokenId", "", Denied, final_, "credentials"),
            (403, "UnrecognizedClientException", "", Denied, final_, "credentials"),
            (403, "MissingAuthenticationToken", "", Denied, final_, "credentials"),
            (403, "IncompleteSignature", "", Denied, final_, "credentials"),
            (403, "SignatureDoesNotMatch", "The request signature", Denied, final_, "secret"),
            (403, "SignatureDoesNotMatch", expired, Denied, final_, "clock"),
            (403, "InvalidSignatureException", scope, Denied, final_, "wrong region"),
            (
                403,
                "InvalidSignatureException",
                "Signature not yet current",
                Denied,
                final_,
                "clock",
            ),
            (403, "RequestTimeTooSkewed", "", Denied, final_, "clock"),
            (403, "RequestExpired", "", Denied, final_, "clock"),
            (403, "ExpiredToken", "", Denied, final_, "session token has expired"),
            (403, "ExpiredTokenException", "", Denied, final_, "session token has expired"),
            (400, "AuthorizationHeaderMalformed", "", Denied, final_, "wrong region"),
            (301, "", "", Denied, final_, "wrong region"),
            (400, "ThrottlingException", "Rate exceeded", Throttled, passing, "Rate exceeded"),
            (400, "RequestThrottled", "", Throttled, passing, "RequestThrottled"),
            (400, "KmsThrottled", "", Throttled, passing, "KmsThrottled"),
            (400, "KMS.ThrottlingException", "", Throttled, passing, "KMS"),
            (503, "SlowDown", "", Throttled, passing, "SlowDown"),
            (403, "OverLimit", "", Throttled, passing, "in flight"),
            (429, "", "", Throttled, passing, "429"),
            (400, "KMS.DisabledException", "", Denied, final_, "key"),
            (400, "KmsAccessDenied", "", Denied, final_, "key"),
            (400, "InvalidMessageContents", "", InvalidMessage, final_, "Contents"),
            (
                400,
                "AWS.SimpleQueueService.BatchRequestTooLong",
                "",
                PayloadTooLarge,
                final_,
                "Long",
            ),
            (400, "InvalidParameterValue", shorter, PayloadTooLarge, final_, "262144"),
            (400, "InvalidAttributeValue", "MessageTooLong", PayloadTooLarge, final_, "Long"),
            (400, "InvalidAttributeValue", "InvalidMessageContents", InvalidMessage, final_, ""),
            (413, "", "", PayloadTooLarge, final_, "413"),
            (400, "ReceiptHandleIsInvalid", "", LeaseLost, final_, "Receipt"),
            (400, "AWS.SimpleQueueService.MessageNotInflight", "", LeaseLost, final_, "Inflight"),
            (400, "InvalidParameterValue", handle, LeaseLost, final_, "ReceiptHandle"),
            (400, "InvalidParameterValue", "The receipt handle has expired", LeaseLost, final_, ""),
            (400, "AWS.SimpleQueueService.UnsupportedOperation", "", Unsupported, final_, ""),
            (400, "InvalidAttributeValue", "", Config, final_, "Value"),
            (400, "InvalidParameterValue", "something else", Broker, final_, "something else"),
            (400, "Unheard", "", Broker, final_, "Unheard"),
            (404, "", "", NotFound, final_, "404"),
            (403, "", "", Denied, final_, "403"),
            (408, "", "", Timeout, unsure, "408"),
            (400, "RequestTimeout", "", Timeout, unsure, "RequestTimeout"),
            (500, "InternalFailure", "oops", Broker, unsure, "oops"),
            (503, "ServiceUnavailable", "", Broker, unsure, "ServiceUnavailable"),
            (502, "", "", Broker, unsure, "502"),
            (200, "", "", Connection, unsure, "makes no sense"),
        ] {
            let error = failed("push", service(status, code, message));
            assert_eq!(found(&error), (kind, transient, stored), "{status} {code} {message}");
            assert!(error.to_string().contains(text), "{text} in {error}");
        }
    }

    #[test]
    fn every_failure_without_an_answer_has_its_outcome() {
        use ErrorKind::{Config, Connection, Denied, Timeout};
        let io = |text: &str| PushError::dispatch_failure(ConnectorError::io(text.into()));
        let other =
            |text: &str| PushError::dispatch_failure(ConnectorError::other(text.into(), None));
        let slow = |text: &str| PushError::dispatch_failure(ConnectorError::timeout(text.into()));
        let table = [
            (PushError::construction_failure("no endpoint"), Config, false, false),
            (PushError::timeout_error("operation timeout"), Timeout, true, true),
            (slow("HTTP read timeout occurred after 3s"), Timeout, true, true),
            (slow("client error (Connect): HTTP connect timeout"), Connection, true, false),
            (io("client error (Connect): tcp connect error"), Connection, true, false),
            (
                io("client error (Connect): invalid peer certificate: Expired"),
                Connection,
                false,
                false,
            ),
            (io("client error (SendRequest): connection reset"), Connection, true, true),
            (other("connection closed before message completed"), Connection, true, true),
            (other("failed to load credentials: none"), Denied, false, false),
            (other("identity resolver timed out after 5s"), Denied, true, false),
            (PushError::response_error("truncated", answer(200)), Connection, true, true),
            (PushError::response_error("truncated", answer(503)), Connection, true, true),
        ];
        for (error, kind, transient, stored) in table {
            let text = format!("{error:?}");
            assert_eq!(found(&failed("push", error)), (kind, transient, stored), "{text}");
        }
    }

    #[test]
    fn every_entry_has_its_outcome() {
        use ErrorKind::{Broker, InvalidMessage, LeaseLost, PayloadTooLarge, Throttled};
        for (code, message, sender_fault, kind, transient, stored) in [
            ("InternalError", None, false, Broker, true, true),
            ("ServiceUnavailable", Some("later"), false, Broker, true, true),
            ("RequestThrottled", None, true, Throttled, true, false),
            ("ThrottlingException", None, false, Throttled, true, false),
            ("InvalidMessageContents", None, true, InvalidMessage, false, false),
            ("ReceiptHandleIsInvalid", None, true, LeaseLost, false, false),
            (
                "InvalidParameterValue",
                Some("The receipt handle has expired"),
                true,
                LeaseLost,
                false,
                false,
            ),
            (
                "InvalidParameterValue",
                Some("Message must be shorter than 9 bytes"),
                true,
                PayloadTooLarge,
                false,
                false,
            ),
            ("Unheard", None, true, Broker, false, false),
        ] {
            let entry = BatchResultErrorEntry::builder().id("1").code(code);
            let entry = entry.set_message(message.map(str::to_owned)).sender_fault(sender_fault);
            let error = entry_failed("settle", &entry.build().expect("complete"));
            assert_eq!(found(&error), (kind, transient, stored), "{code}");
            assert!(error.to_string().contains(code) && error.operation() == "settle");
        }
    }

    #[test]
    fn only_a_missing_permission_is_one() {
        assert!(lacks_permission(&service(400, "AccessDeniedException", "")));
        assert!(lacks_permission(&service(403, "AccessDenied", "")));
        assert!(!lacks_permission(&service(403, "InvalidClientTokenId", "")));
        assert!(!lacks_permission(&PushError::timeout_error("late")));
    }

    #[test]
    fn what_the_service_repeats_of_a_request_is_not_shown() {
        let canonical = "The request signature we calculated does not match.\n\nThe Canonical \
                         String for this request should have been\n'POST\n/\n\nhost:h\n\
                         x-amz-security-token:t0ken\n'";
        let header = "Authorization header requires 'Date'. Authorization=AWS4 Credential=t0ken";
        let one_line = "The Canonical String for this request should have been 'POST t0ken'";
        for message in [canonical, header, one_line] {
            for status in [403, 500] {
                let error = failed("push", service(status, "SignatureDoesNotMatch", message));
                let source = error.source().expect("the answer");
                let shown = format!("{error} {error:?} {source} {source:?}");
                assert!(!shown.contains("t0ken"), "{shown}");
            }
        }
        let error = failed("push", PushError::response_error("cut", answer(200)));
        assert!(!format!("{error} {error:?}").contains("t0ken"));
        assert_eq!(shown(&"x".repeat(1_000)).len(), 300);
    }

    #[test]
    fn the_native_error_is_reachable() {
        let error = failed("push", service(400, "OverLimit", "many"));
        let source = error.source().and_then(|source| source.downcast_ref::<ErrorMetadata>());
        let source = source.expect("the answer");
        assert_eq!((source.code(), source.message()), (Some("OverLimit"), Some("many")));
        assert_eq!(source.extra(REQUEST_ID), Some("r-1"));
        let failure = Failure::of(PushError::dispatch_failure(ConnectorError::io("cut".into())));
        let error = failure.error("push");
        let errors = std::iter::successors(error.source(), |&error| error.source());
        let found = errors.filter(|error| error.is::<ConnectorError>()).count();
        assert_eq!(found, 1);
    }

    #[tokio::test]
    async fn a_server_that_is_away_was_sent_nothing() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let closed = listener.local_addr().expect("bound").port();
        drop(listener);
        for host in [format!("127.0.0.1:{closed}"), "host.invalid".to_owned()] {
            let http = aws_smithy_http_client::Builder::new()
                .tls_provider(tls::Provider::Rustls(CryptoMode::Ring))
                .build_https();
            let config = aws_sdk_sqs::Config::builder()
                .behavior_version(BehaviorVersion::latest())
                .http_client(http)
                .region(Region::new("eu-central-1"))
                .credentials_provider(Credentials::new("k", "s3cret", None, None, NAME))
                .retry_config(RetryConfig::disabled())
                .endpoint_url(format!("http://{host}"))
                .build();
            let client = aws_sdk_sqs::Client::from_conf(config);
            let answer = client.send_message().queue_url("q").message_body("b").send().await;
            let error = failed("push", answer.expect_err("nobody is there"));
            assert_eq!(found(&error), (ErrorKind::Connection, true, false), "{error}");
            assert!(error.to_string().contains("cannot be reached"), "{error}");
            assert!(!format!("{error:?}").contains("s3cret"));
        }
    }
}
