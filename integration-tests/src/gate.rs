//! An HTTP server between a client and an SQS server, which does to chosen requests what networks and
//! services do: refuse, stay silent, break off, answer something else.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};

use crate::elasticmq::frames::{action, head_length, length};

/// The bodies of so many requests are kept to be looked at.
const KEPT: usize = 2_000;

/// What becomes of a request.
pub enum Deed {
    /// Forwarded, as its answer.
    Pass,
    /// Answered with a status and a body; the server does not see it.
    Answer(u16, Value),
    /// Not forwarded: the connection is closed.
    Drop,
    /// Forwarded; instead of its answer the connection is closed.
    DropAnswer,
    /// Forwarded; all but the last byte of its answer comes, then the connection is closed.
    ShortAnswer,
    /// Forwarded; its answer never comes.
    Silence,
    /// Forwarded, and its answer is changed.
    Change(Box<dyn FnOnce(Value) -> Value + Send>),
}

impl Deed {
    /// The answer with which the service refuses a request.
    #[must_use]
    pub fn refuse(status: u16, code: &str, message: &str) -> Self {
        Self::Answer(status, refusal(code, message))
    }

    /// Changes the answer.
    pub fn change(change: impl FnOnce(Value) -> Value + Send + 'static) -> Self {
        Self::Change(Box::new(change))
    }
}

impl fmt::Debug for Deed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Deed")
    }
}

/// The body of a refusal.
fn refusal(code: &str, message: &str) -> Value {
    json!({ "__type": format!("com.amazonaws.sqs#{code}"), "message": message })
}

/// Makes a deed each time it is asked.
pub type MakeDeed = fn() -> Deed;

/// Decides about a request: its action, and its body, which may be changed before it is forwarded.
pub type Rule = Box<dyn FnMut(&str, &mut Value) -> Deed + Send>;

/// A request that came by.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Such as `SendMessage`.
    pub action: String,
    /// What it said.
    pub body: Value,
}

/// Runs on a thread of its own until it is dropped.
pub struct Gate {
    address: SocketAddr,
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
}

struct Shared {
    target: SocketAddr,
    rule: Mutex<Option<Rule>>,
    log: Mutex<Log>,
}

/// What came by.
#[derive(Default)]
struct Log {
    counts: BTreeMap<String, usize>,
    /// Actions and bodies.
    last: VecDeque<(String, Vec<u8>)>,
}

impl Gate {
    /// A gate before `target` on a free port of the loopback interface, which lets everything pass.
    ///
    /// # Errors
    /// If there is no port or no thread to be had.
    pub fn before(target: SocketAddr) -> io::Result<Self> {
        let mut builder = Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).thread_name("gate").enable_all().build()?;
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared { target, rule: Mutex::default(), log: Mutex::default() });
        let listener = {
            let _entered = runtime.enter();
            TcpListener::from_std(listener)?
        };
        runtime.spawn(accept(Arc::clone(&shared), listener));
        Ok(Self { address, shared, runtime: Some(runtime) })
    }

    /// Where clients connect.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The same, as an endpoint.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on decides so about each request.
    pub fn rule(&self, rule: impl FnMut(&str, &mut Value) -> Deed + Send + 'static) {
        *lock(&self.shared.rule) = Some(Box::new(rule));
    }

    /// The next `times` requests of this action suffer this; the others pass.
    pub fn next(
        &self,
        chosen: &'static str,
        times: usize,
        deed: impl Fn() -> Deed + Send + 'static,
    ) {
        let mut left = times;
        self.rule(move |action, _| {
            if left == 0 || !action.starts_with(chosen) {
                return Deed::Pass;
            }
            left -= 1;
            deed()
        });
    }

    /// Lets everything pass again.
    pub fn open(&self) {
        *lock(&self.shared.rule) = None;
    }

    /// How many requests whose action begins so have come by.
    #[must_use]
    pub fn count(&self, action: &str) -> usize {
        let log = lock(&self.shared.log);
        log.counts
            .iter()
            .filter(|(found, _)| found.starts_with(action))
            .map(|(_, count)| count)
            .sum()
    }

    /// The requests whose action begins so, the last two thousand of all.
    #[must_use]
    pub fn seen(&self, action: &str) -> Vec<Seen> {
        let log = lock(&self.shared.log);
        let chosen = log.last.iter().filter(|(found, _)| found.starts_with(action));
        let read = |(action, body): &(String, Vec<u8>)| Seen {
            action: action.clone(),
            body: serde_json::from_slice(body).unwrap_or_default(),
        };
        chosen.map(read).collect()
    }
}

impl Shared {
    fn note(&self, action: &str, body: &[u8]) {
        let mut log = lock(&self.log);
        *log.counts.entry(action.to_owned()).or_default() += 1;
        if log.last.len() == KEPT {
            log.last.pop_front();
        }
        log.last.push_back((action.to_owned(), body.to_vec()));
    }

    /// What becomes of a request, and its body as it is forwarded if it was changed.
    fn decide(&self, action: &str, body: &[u8]) -> (Deed, Option<Vec<u8>>) {
        let mut rule = lock(&self.rule);
        let Some(rule) = rule.as_mut() else { return (Deed::Pass, None) };
        let before: Value = serde_json::from_slice(body).unwrap_or_default();
        let mut after = before.clone();
        let deed = rule(action, &mut after);
        let changed = (after != before).then(|| after.to_string().into_bytes());
        (deed, changed)
    }
}

fn lock<T>(values: &Mutex<T>) -> MutexGuard<'_, T> {
    values.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn accept(shared: Arc<Shared>, listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((client, _)) => {
                let shared = Arc::clone(&shared);
                // A connection that breaks is what both ends see.
                tokio::spawn(async move { drop(serve(&shared, client).await) });
            }
            // Too many open files, most likely: some will be closed.
            Err(_) => tokio::task::yield_now().await,
        }
    }
}

/// A connection of a client, and the one to the server that belongs to it.
async fn serve(shared: &Shared, mut client: TcpStream) -> io::Result<()> {
    client.set_nodelay(true)?;
    let mut server = None;
    let mut from_client = Vec::new();
    let mut from_server = Vec::new();
    while let Some(request) = read_one(&mut client, &mut from_client).await? {
        let (head, body) = request.split_at(head_length(&request).unwrap_or(0));
        let action = action(&request).unwrap_or("unknown").to_owned();
        shared.note(&action, body);
        let (deed, changed) = shared.decide(&action, body);
        match deed {
            Deed::Drop => return Ok(()),
            Deed::Answer(status, body) => {
                client.write_all(&answer(status, &body)).await?;
                continue;
            }
            _ => {}
        }
        let server = match &mut server {
            Some(server) => server,
            none => none.insert(connect(shared.target).await?),
        };
        match changed {
            Some(body) => server.write_all(&with_length(head, &body)).await?,
            None => server.write_all(&request).await?,
        }
        let answered = tokio::select! {
            answered = read_one(server, &mut from_server) => answered?,
            // Nobody waits for the answer any more, and the server is to know that.
            _ = client.readable() => return Ok(()),
        };
        let Some(answered) = answered else { return Ok(()) };
        match deed {
            Deed::DropAnswer => return Ok(()),
            Deed::ShortAnswer => return client.write_all(&answered[..answered.len() - 1]).await,
            Deed::Silence => return client.readable().await,
            Deed::Change(change) => {
                let (head, body) = answered.split_at(head_length(&answered).unwrap_or(0));
                let body = change(serde_json::from_slice(body).unwrap_or_default()).to_string();
                client.write_all(&with_length(head, body.as_bytes())).await?;
            }
            _ => client.write_all(&answered).await?,
        }
    }
    Ok(())
}

async fn connect(target: SocketAddr) -> io::Result<TcpStream> {
    let server = TcpStream::connect(target).await?;
    server.set_nodelay(true)?;
    Ok(server)
}

/// The next request or answer, whole; none if the other side closes before it.
async fn read_one(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<Option<Vec<u8>>> {
    loop {
        match length(buffer) {
            Some(length) if length <= buffer.len() => {
                let rest = buffer.split_off(length);
                return Ok(Some(std::mem::replace(buffer, rest)));
            }
            _ if stream.read_buf(buffer).await? == 0 => return Ok(None),
            _ => {}
        }
    }
}

/// A head and a body, whose length the head is made to say.
fn with_length(head: &[u8], body: &[u8]) -> Vec<u8> {
    let head = String::from_utf8_lossy(head);
    let is_length = |line: &str| line.to_ascii_lowercase().starts_with("content-length:");
    let lines = head.trim_end().split("\r\n").filter(|line| !is_length(line));
    let head: String = lines.map(|line| format!("{line}\r\n")).collect();
    let mut whole = format!("{head}content-length: {}\r\n\r\n", body.len()).into_bytes();
    whole.extend_from_slice(body);
    whole
}

fn answer(status: u16, body: &Value) -> Vec<u8> {
    let head =
        format!("HTTP/1.1 {status} Said\r\ncontent-type: application/x-amz-json-1.0\r\n\r\n");
    with_length(head.as_bytes(), body.to_string().as_bytes())
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.runtime.take().into_iter().for_each(Runtime::shutdown_background);
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("address", &self.address).finish_non_exhaustive()
    }
}
