//! The proxy before a server that says everything again.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use jobs_kit::Proxy;
use jobs_kit::proxy::{Direction, End};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(10);
/// How long nothing must arrive to believe that nothing will.
const QUIET: Duration = Duration::from_millis(50);

/// A server that echoes, for as long as the test's runtime lives.
async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                // A connection that the proxy breaks is part of the test.
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    address
}

async fn connect(proxy: &Proxy) -> TcpStream {
    within(TcpStream::connect(proxy.address())).await.expect("the proxy listens")
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.expect("in time")
}

async fn say(stream: &mut TcpStream, text: &str) -> String {
    stream.write_all(text.as_bytes()).await.expect("written");
    hear(stream, text.len()).await
}

async fn hear(stream: &mut TcpStream, length: usize) -> String {
    let mut answer = vec![0; length];
    within(stream.read_exact(&mut answer)).await.expect("answered");
    String::from_utf8(answer).expect("text")
}

/// What a client finds when it reads on.
async fn end_of(stream: &mut TcpStream) -> Result<usize, ErrorKind> {
    within(stream.read(&mut [0; 16])).await.map_err(|error| error.kind())
}

/// What a client finds that connects now. It may learn of a reset while it does.
async fn end_of_new(proxy: &Proxy) -> Result<usize, ErrorKind> {
    match within(TcpStream::connect(proxy.address())).await {
        Ok(mut stream) => end_of(&mut stream).await,
        Err(error) => Err(error.kind()),
    }
}

#[tokio::test]
async fn forwards_everything_and_the_end() {
    let proxy = Proxy::start(echo().await).expect("a proxy");
    let stream = connect(&proxy).await;
    let (mut read, mut write) = stream.into_split();
    let sent: Vec<u8> = (0..1_000_000_u32).map(|number| number as u8).collect();
    let copy = sent.clone();
    let writer = tokio::spawn(async move {
        write.write_all(&copy).await.expect("written");
        write.shutdown().await.expect("shut down");
    });
    let mut received = Vec::new();
    within(read.read_to_end(&mut received)).await.expect("read");
    writer.await.expect("no panic");
    assert!(received == sent, "{} of {} bytes", received.len(), sent.len());
}

#[tokio::test]
async fn closes_and_resets_and_serves_new_connections() {
    let proxy = Proxy::start(echo().await).expect("a proxy");
    for (end, seen) in [(End::Close, Ok(0)), (End::Reset, Err(ErrorKind::ConnectionReset))] {
        let (mut first, mut second) = (connect(&proxy).await, connect(&proxy).await);
        for stream in [&mut first, &mut second] {
            assert_eq!(say(stream, "hello").await, "hello");
        }
        assert_eq!(proxy.connections(), 2);
        within(proxy.break_all(end)).await;
        assert_eq!(proxy.connections(), 0);
        assert_eq!((end_of(&mut first).await, end_of(&mut second).await), (seen, seen));
    }
    assert_eq!(say(&mut connect(&proxy).await, "again").await, "again");
}

#[tokio::test]
async fn refuses_new_connections_only() {
    let proxy = Proxy::start(echo().await).expect("a proxy");
    let mut before = connect(&proxy).await;
    assert_eq!(say(&mut before, "before").await, "before");
    proxy.refuse();
    assert_eq!(end_of_new(&proxy).await, Err(ErrorKind::ConnectionReset));
    assert_eq!(say(&mut before, "still here").await, "still here");
    proxy.restore();
    assert_eq!(say(&mut connect(&proxy).await, "after").await, "after");
}

#[tokio::test]
async fn a_server_that_is_gone_is_a_reset() {
    let gone = {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        listener.local_addr().expect("bound")
    };
    let proxy = Proxy::start(gone).expect("a proxy");
    assert_eq!(end_of_new(&proxy).await, Err(ErrorKind::ConnectionReset));
}

#[tokio::test]
async fn stalls_with_connections_open_and_loses_nothing() {
    let proxy = Proxy::start(echo().await).expect("a proxy");
    let mut stream = connect(&proxy).await;
    assert_eq!(say(&mut stream, "before").await, "before");
    proxy.stall();
    stream.write_all(b"meanwhile").await.expect("the proxy reads on");
    let mut answer = [0; 16];
    assert!(timeout(QUIET, stream.read(&mut answer)).await.is_err(), "nothing comes");
    assert_eq!(proxy.connections(), 1);
    proxy.restore();
    assert_eq!(hear(&mut stream, 9).await, "meanwhile");
}

#[tokio::test]
async fn holds_what_goes_one_way_only() {
    let proxy = Proxy::start_framed(echo().await, length).expect("a proxy");
    let mut stream = connect(&proxy).await;
    assert_eq!(say(&mut stream, "\u{2}a").await, "\u{2}a");
    proxy.hold(Direction::ToClient);
    let arrives = proxy.trap_frame(Direction::ToServer, End::Close, |frame| frame == b"\x02c");
    stream.write_all(b"\x02b").await.expect("the proxy reads on");
    let mut answer = [0; 16];
    assert!(timeout(QUIET, stream.read(&mut answer)).await.is_err(), "nothing comes back");
    stream.write_all(b"\x02c").await.expect("the proxy reads on");
    within(arrives.sprung()).await;
}

#[tokio::test]
async fn a_stalled_connection_can_be_broken() {
    let proxy = Proxy::start(echo().await).expect("a proxy");
    let mut stream = connect(&proxy).await;
    assert_eq!(say(&mut stream, "before").await, "before");
    proxy.stall();
    stream.write_all(b"never").await.expect("the proxy reads on");
    within(proxy.break_all(End::Reset)).await;
    assert_eq!(end_of(&mut stream).await, Err(ErrorKind::ConnectionReset));
}

#[tokio::test]
async fn slows_down() {
    const LATENCY: Duration = Duration::from_millis(50);
    let proxy = Proxy::start(echo().await).expect("a proxy");
    let mut stream = connect(&proxy).await;
    proxy.slow(LATENCY, None);
    let start = Instant::now();
    assert_eq!(say(&mut stream, "there and back").await, "there and back");
    assert!(start.elapsed() >= 2 * LATENCY, "{:?}", start.elapsed());
    proxy.slow(Duration::ZERO, NonZeroU32::new(1_000));
    let start = Instant::now();
    assert_eq!(say(&mut stream, &"x".repeat(100)).await.len(), 100);
    assert_eq!(say(&mut stream, "the next").await, "the next");
    assert!(start.elapsed() >= Duration::from_millis(100), "{:?}", start.elapsed());
}

/// A frame begins with its length, itself included.
fn length(bytes: &[u8]) -> Option<usize> {
    bytes.first().map(|length| usize::from(*length))
}

#[tokio::test]
async fn a_trap_catches_the_first_chosen_frame() {
    let proxy = Proxy::start_framed(echo().await, length).expect("a proxy");
    let mut other = connect(&proxy).await;
    let mut stream = connect(&proxy).await;
    let trap = proxy.trap_frame(Direction::ToClient, End::Reset, |frame| frame[1] == b'!');
    // The chosen frame comes in two parts, after one that passes.
    assert_eq!(say(&mut stream, "\u{3}ab").await, "\u{3}ab");
    stream.write_all(b"\x03").await.expect("written");
    stream.write_all(b"!z").await.expect("written");
    within(trap.sprung()).await;
    assert_eq!(end_of(&mut stream).await, Err(ErrorKind::ConnectionReset));
    assert_eq!(say(&mut other, "\u{3}!a").await, "\u{3}!a", "it is spent, and took one only");
}

#[tokio::test]
async fn a_trap_in_the_other_direction_or_dropped_catches_nothing() {
    let proxy = Proxy::start_framed(echo().await, length).expect("a proxy");
    let mut stream = connect(&proxy).await;
    drop(proxy.trap_frame(Direction::ToServer, End::Reset, |_| true));
    let sent = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counter = std::sync::Arc::clone(&sent);
    let trap = proxy.trap_frame(Direction::ToServer, End::Close, move |_| {
        counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        false
    });
    assert_eq!(say(&mut stream, "\u{2}a\u{3}bc").await, "\u{2}a\u{3}bc");
    assert_eq!(sent.load(std::sync::atomic::Ordering::Relaxed), 2, "each frame of its way once");
    drop(trap);
}

#[tokio::test]
async fn a_trap_catches_a_byte() {
    let proxy = Proxy::start(echo().await).expect("a proxy");
    let mut stream = connect(&proxy).await;
    let trap = proxy.trap_byte(Direction::ToClient, End::Close, 7);
    assert_eq!(say(&mut stream, "seven").await, "seven");
    stream.write_all(b"bytes").await.expect("written");
    assert_eq!(hear(&mut stream, 2).await, "by");
    within(trap.sprung()).await;
    assert!(matches!(end_of(&mut stream).await, Ok(0) | Err(ErrorKind::ConnectionReset)));
}

#[tokio::test]
async fn a_peer_that_does_not_read_fills_no_memory() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let proxy = Proxy::start(listener.local_addr().expect("bound")).expect("a proxy");
    let mut stream = connect(&proxy).await;
    let (_server, _) = within(listener.accept()).await.expect("connected");
    let megabyte = vec![0; 1 << 20];
    let mut written = 0;
    // The sockets' own buffers are all that is left when the proxy waits for the server.
    while timeout(Duration::from_secs(1), stream.write_all(&megabyte)).await.is_ok() {
        written += 1;
        assert!(written < 64, "{written} MiB are somewhere");
    }
}
