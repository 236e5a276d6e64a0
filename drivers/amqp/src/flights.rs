//! Publishes under way on one channel, from the first frame to the confirm.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker, ready};

use futures::future::{self, FutureExt};
use futures::stream::{FuturesUnordered, Stream, StreamExt};
use jobs_core::{Message, Result};
use lapin::message::BasicReturnMessage;
use lapin::options::BasicPublishOptions;
use lapin::{BasicProperties, Channel, Confirmation, PublisherConfirm};
use tokio::sync::oneshot;
use tokio_util::sync::ReusableBoxFuture;

use crate::codec::id_of;
use crate::confirms::{Key, Published};
use crate::topology::Target;

/// Publishes that wait for their confirms. A window of 1,024 reaches what the client can do.
pub(crate) const WINDOW: usize = 2_048;

/// Those of them that the client has not written yet: it writes no faster with more, and memory for
/// so many is kept for the next ones.
const WRITES: usize = 128;

/// A message on its way, once.
pub(crate) struct Publish {
    pub(crate) target: Arc<Target>,
    /// Its id and target tell returned messages apart, its payload is the body.
    pub(crate) message: Message,
    /// Whoever takes them decides: the task, to publish it, or its caller, to give up. So a push that
    /// fails knows whether its message may be stored.
    properties: Mutex<Option<BasicProperties>>,
}

impl Publish {
    pub(crate) fn new(
        target: Arc<Target>,
        message: Message,
        properties: BasicProperties,
    ) -> Arc<Self> {
        Arc::new(Self { target, message, properties: Mutex::new(Some(properties)) })
    }

    /// What nobody took yet.
    pub(crate) fn take(&self) -> Option<BasicProperties> {
        self.properties().take()
    }

    /// True if nobody took them, and so nobody will: the message is not handed to the client.
    pub(crate) fn discard(&self) -> bool {
        // To take them would move them, and they are large.
        let mut properties = self.properties();
        let there = properties.is_some();
        *properties = None;
        there
    }

    fn properties(&self) -> MutexGuard<'_, Option<BasicProperties>> {
        self.properties.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A push that waits to be told.
pub(crate) struct Request {
    pub(crate) publish: Arc<Publish>,
    pub(crate) answer: oneshot::Sender<Result<()>>,
}

impl Request {
    pub(crate) fn tell(self, answer: Result<()>) {
        // Nobody listens any more: that caller has drawn its own conclusion.
        let _ = self.answer.send(answer);
    }
}

impl Published for Request {
    fn key(&self) -> Key {
        let Target { exchange, routing_key } = &*self.publish.target;
        let id = self.publish.message.id().as_str().to_owned();
        Key { id, exchange: exchange.to_string(), routing_key: routing_key.to_string() }
    }
}

/// What happened to the publishes under way.
pub(crate) enum Flown {
    /// Confirmed, together with some returned message.
    Acked(Request, Option<Key>),
    Nacked(Request, Option<Key>),
    Failed(Request, lapin::Error),
    /// There was no room, and all writes have ended since.
    Room,
}

/// The client's future is large, and lives for a moment only.
type Write<'a> = ReusableBoxFuture<'a, (Request, lapin::Result<PublisherConfirm>)>;

/// The publishes that were started on a channel and have not ended.
pub(crate) struct Flights<'a> {
    channel: &'a Channel,
    /// In the order of their frames, as the client writes them: only the first is waited for.
    writes: VecDeque<Write<'a>>,
    /// Writes that have ended.
    spare: Vec<Write<'a>>,
    /// There was no room for a write, and [`Flown::Room`] is still to come. It saves time only: who asks
    /// for the room now and then finds it, too.
    full: bool,
    confirms: FuturesUnordered<Unconfirmed>,
    woken: Arc<Woken>,
}

impl<'a> Flights<'a> {
    pub(crate) fn new(channel: &'a Channel) -> Self {
        Self {
            channel,
            writes: VecDeque::new(),
            spare: Vec::new(),
            full: false,
            confirms: FuturesUnordered::new(),
            woken: Arc::default(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.writes.len() + self.confirms.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many may be started now.
    pub(crate) fn room(&self) -> usize {
        (WINDOW - self.len()).min(WRITES - self.writes.len())
    }

    /// Numbers the publish and queues its frames. There must be room.
    pub(crate) fn start(&mut self, request: Request, properties: BasicProperties) {
        let channel = self.channel;
        let write = async move {
            let Publish { target, message, .. } = &*request.publish;
            let options = BasicPublishOptions { mandatory: true, ..Default::default() };
            let Target { exchange, routing_key } = Target::clone(target);
            let body = message.payload();
            let write = channel.basic_publish(exchange, routing_key, options, body, properties);
            let written = write.await;
            (request, written)
        };
        let mut write = match self.spare.pop() {
            Some(mut spare) => {
                spare.set(write);
                spare
            }
            None => Write::new(write),
        };
        // The client does both when it is first asked.
        if let Some(written) = write.get_pin().now_or_never() {
            write = Write::new(future::ready(written));
        }
        self.writes.push_back(write);
    }

    /// What has happened. None means that all the client had resolved when this was called were returned.
    pub(crate) fn landed(&mut self) -> Option<Flown> {
        Arc::clone(&self.woken).ready(self)
    }
}

impl Stream for Flights<'_> {
    type Item = Flown;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Flown>> {
        self.full |= self.writes.len() == WRITES;
        while let Some(write) = self.writes.front_mut() {
            let Poll::Ready((request, written)) = write.poll(cx) else { break };
            let ended = self.writes.pop_front();
            if self.spare.len() < WRITES {
                self.spare.extend(ended);
            }
            match written {
                Ok(confirm) => self.confirms.push(Unconfirmed { request: Some(request), confirm }),
                Err(error) => return Poll::Ready(Some(Flown::Failed(request, error))),
            }
        }
        // Taking more as soon as there is any room would be a wake-up for each.
        if self.full && self.writes.is_empty() {
            self.full = false;
            return Poll::Ready(Some(Flown::Room));
        }
        match self.confirms.poll_next_unpin(cx) {
            Poll::Ready(None) if !self.writes.is_empty() => Poll::Pending,
            flown => flown,
        }
    }
}

/// Whether somebody was woken.
#[derive(Default)]
struct Woken(AtomicBool);

impl Woken {
    /// What a stream has ready.
    fn ready<S: Stream + Unpin>(self: Arc<Self>, stream: &mut S) -> Option<S::Item> {
        let waker = Waker::from(Arc::clone(&self));
        loop {
            self.0.store(false, Ordering::Release);
            match stream.poll_next_unpin(&mut Context::from_waker(&waker)) {
                Poll::Ready(item) => return item,
                // The stream lets others run before it looks at the rest.
                Poll::Pending if self.0.load(Ordering::Acquire) => std::thread::yield_now(),
                Poll::Pending => return None,
            }
        }
    }
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Release);
    }
}

/// Written, and not confirmed.
struct Unconfirmed {
    /// Until it is.
    request: Option<Request>,
    confirm: PublisherConfirm,
}

impl Future for Unconfirmed {
    type Output = Flown;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Flown> {
        let confirmed = ready!(self.confirm.poll_unpin(cx));
        let request = self.request.take().expect("polled until it is ready");
        let key_of = |returned: Option<BasicReturnMessage>| returned.as_ref().and_then(key_of);
        Poll::Ready(match confirmed {
            Ok(Confirmation::Ack(returned)) => Flown::Acked(request, key_of(returned)),
            Ok(Confirmation::Nack(returned)) => Flown::Nacked(request, key_of(returned)),
            Ok(Confirmation::NotRequested) => {
                let id = request.publish.message.id();
                unreachable!("confirms were selected before {id:?} was published")
            }
            Err(error) => Flown::Failed(request, error),
        })
    }
}

/// What tells a message apart that the broker gave back.
fn key_of(returned: &BasicReturnMessage) -> Option<Key> {
    let delivery = &returned.delivery;
    Some(Key {
        id: id_of(&delivery.properties)?.to_owned(),
        exchange: delivery.exchange.to_string(),
        routing_key: delivery.routing_key.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_set_puts_off_is_found_as_well() {
        let (tell, told) = oneshot::channel();
        let mut set = FuturesUnordered::new();
        set.push(async { told.await.is_ok() }.boxed());
        let tells = async {
            // When all were polled once, the set stops, although the first is ready by then.
            tell.send(()).expect("it waits");
            future::pending().await
        };
        set.push(tells.boxed());
        let woken = Arc::<Woken>::default();
        assert_eq!(Arc::clone(&woken).ready(&mut set), Some(true));
        assert_eq!(woken.ready(&mut set), None, "the other never ends");
    }
}
