//! How a handler's argument is made from a job's payload.

use std::borrow::Cow;

use bytes::Bytes;
use jobs_core::{Error, ErrorKind, Message, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A type that travels as a job's payload. [`Json`] and [`Bytes`] do; implement it on a wrapper
/// type to use another encoding.
///
/// ```
/// use jobs::{Bytes, Error, ErrorKind, Payload, Result};
///
/// struct Text(String);
///
/// impl Payload for Text {
///     fn decode(payload: &Bytes) -> Result<Self> {
///         let text = str::from_utf8(payload);
///         text.map(|text| Self(text.to_owned()))
///             .map_err(|error| Error::new(ErrorKind::Codec, "decode").with_source(error))
///     }
///
///     fn encode(&self) -> Result<Bytes> {
///         Ok(Bytes::copy_from_slice(self.0.as_bytes()))
///     }
/// }
///
/// assert_eq!(Text("hello".into()).message("greet")?.payload(), "hello");
/// # Ok::<(), jobs::Error>(())
/// ```
pub trait Payload: Sized + Send + 'static {
    /// Reads a payload.
    ///
    /// # Errors
    /// `Codec`. The error's text is logged, its source is not: so that nothing of a payload gets
    /// into a log, a parser's message belongs into the source.
    fn decode(payload: &Bytes) -> Result<Self>;

    /// Writes a payload.
    ///
    /// # Errors
    /// `Codec`.
    fn encode(&self) -> Result<Bytes>;

    /// A message for the handler called `name` with this payload.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    fn message(&self, name: impl Into<Cow<'static, str>>) -> Result<Message> {
        Ok(Message::new(name, self.encode()?))
    }
}

/// A payload in JSON.
///
/// ```
/// use jobs::{Json, Payload};
///
/// let message = Json(vec![1, 2, 3]).message("sum")?;
/// assert_eq!(message.payload(), "[1,2,3]");
/// # Ok::<(), jobs::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Json<T>(pub T);

impl<T: Serialize + DeserializeOwned + Send + 'static> Payload for Json<T> {
    fn decode(payload: &Bytes) -> Result<Self> {
        serde_json::from_slice(payload).map(Self).map_err(|error| {
            let (line, column) = (error.line(), error.column());
            let context = format!("not the JSON expected, at line {line}, column {column}");
            Error::new(ErrorKind::Codec, "decode").with_context(context).with_source(error)
        })
    }

    fn encode(&self) -> Result<Bytes> {
        let bytes = serde_json::to_vec(&self.0);
        bytes
            .map(Bytes::from)
            .map_err(|error| Error::new(ErrorKind::Codec, "encode").with_source(error))
    }
}

/// The payload as it is.
impl Payload for Bytes {
    fn decode(payload: &Bytes) -> Result<Self> {
        Ok(payload.clone())
    }

    fn encode(&self) -> Result<Bytes> {
        Ok(self.clone())
    }
}
