//! Handlers without a broker.

#![allow(clippy::unwrap_used, reason = "in a test the panic is the report")]

use std::time::Duration;

use jobs::{
    Bytes, Context, ErrorKind, Failure, HandlerError, Handlers, Json, Message, Outcome, Payload,
    Policy,
};

async fn import(Json(rows): Json<u32>, context: Context) -> Result<(), HandlerError> {
    context.extend(Duration::from_secs(60)).await?;
    match (rows, context.attempt()) {
        (0, _) => Err(HandlerError::reject("no rows")),
        (1, 1) => Err(HandlerError::retry_after(Duration::from_secs(5), "not yet")),
        (2, _) => panic!("by design"),
        (3, _) => Err(std::io::Error::other("broken").into()),
        _ => Ok(()),
    }
}

fn rows(rows: u32) -> Message {
    Json(rows).message("import").unwrap()
}

#[tokio::test]
async fn tells_what_would_become_of_the_job() {
    let handlers = Handlers::new()
        .handle("import", import)
        .on_failure(Failure::Panic, Policy::Reject)
        .on_failure(Failure::Error, Policy::RetryAfter(Duration::from_secs(7)));
    let inline = handlers.inline().unwrap();
    assert_eq!(inline.push(rows(9)).await.unwrap(), Outcome::Ack);
    assert_eq!(inline.push(rows(0)).await.unwrap(), Outcome::Reject);
    assert_eq!(inline.push(rows(2)).await.unwrap(), Outcome::Reject);
    let later = |seconds| Outcome::requeue_after(Duration::from_secs(seconds));
    assert_eq!(inline.push(rows(1)).await.unwrap(), later(5));
    assert_eq!(inline.push_attempt(rows(1), 2).await.unwrap(), Outcome::Ack);
    assert_eq!(inline.push(rows(3)).await.unwrap(), later(7));
    let unknown = inline.push(Message::new("export", "")).await.unwrap();
    assert!(matches!(unknown, Outcome::Requeue { .. }));
    let undecodable = inline.push(Message::new("import", "many")).await.unwrap();
    assert!(matches!(undecodable, Outcome::Requeue { .. }));
}

#[tokio::test]
async fn refuses_what_no_driver_takes_and_handlers_registered_twice() {
    let nothing = |_: Bytes, _: Context| std::future::ready(Ok(()));
    let inline = Handlers::new().fallback(nothing).inline().unwrap();
    assert_eq!(inline.push(Message::new("any", "")).await.unwrap(), Outcome::Ack);
    let error = inline.push(Message::new("any", "").with_id("")).await.expect_err("no id");
    assert_eq!(error.kind(), ErrorKind::InvalidMessage);
    let delayed = Message::new("any", "").with_delay(Duration::from_secs(9));
    assert_eq!(inline.push(delayed).await.unwrap(), Outcome::Ack);
    let twice = Handlers::new().handle("x", nothing).handle("x", nothing).inline();
    assert_eq!(twice.expect_err("twice").kind(), ErrorKind::InvalidState);
}

#[test]
fn a_codec_of_ones_own() {
    #[derive(Debug)]
    struct Hex(u32);

    impl Payload for Hex {
        fn decode(payload: &Bytes) -> jobs::Result<Self> {
            let wrong = || jobs::Error::new(ErrorKind::Codec, "decode");
            let text = str::from_utf8(payload).map_err(|error| wrong().with_source(error))?;
            let number = u32::from_str_radix(text, 16);
            number.map(Self).map_err(|error| wrong().with_source(error))
        }

        fn encode(&self) -> jobs::Result<Bytes> {
            Ok(format!("{:x}", self.0).into())
        }
    }

    let message = Hex(255).message("x").unwrap();
    assert_eq!((&message.payload()[..], message.name()), (&b"ff"[..], "x"));
    assert_eq!(Hex::decode(message.payload()).unwrap().0, 255);
    assert_eq!(Hex::decode(&"xyz".into()).expect_err("no hex").kind(), ErrorKind::Codec);
    assert_eq!(Json::<u8>::decode(&"300".into()).expect_err("large").kind(), ErrorKind::Codec);
    let unwritable = Json(std::collections::BTreeMap::from([((1, 2), 3)]));
    assert_eq!(unwritable.encode().expect_err("no text key").kind(), ErrorKind::Codec);
    assert_eq!(Bytes::decode(&"raw".into()).unwrap().encode().unwrap(), "raw");
}
