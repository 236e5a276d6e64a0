//! A server that says what a test wants, which a real one seldom does.
#![allow(dead_code, reason = "each test program uses a part")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use jobs_core::{Driver, Pipeline, Queue, Registry, Result};

/// What is said to a command.
#[derive(Clone, Debug)]
pub(crate) enum Say {
    Bytes(Vec<u8>),
    /// Nothing, and nothing more on this connection.
    Nothing,
    Close,
}

impl Say {
    pub(crate) fn line(text: &str) -> Self {
        Self::Bytes(format!("{text}\r\n").into_bytes())
    }

    pub(crate) fn job(id: u64, body: &str) -> Self {
        Self::line(&format!("RESERVED {id} {}\r\n{body}", body.len()))
    }
}

/// Given a command's line. None: what a server with an empty tube says.
pub(crate) type Script = dyn Fn(&str) -> Option<Say> + Send + Sync;

/// Serves until it is dropped.
pub(crate) struct Server {
    port: u16,
    connections: Arc<Mutex<Vec<TcpStream>>>,
}

impl Server {
    pub(crate) fn start(script: impl Fn(&str) -> Option<Say> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let connections: Arc<Mutex<Vec<TcpStream>>> = Arc::default();
        let (kept, script) = (Arc::clone(&connections), Arc::new(script));
        thread::spawn(move || {
            for stream in listener.incoming().map_while(std::io::Result::ok) {
                kept.lock().expect("kept").push(stream.try_clone().expect("a second handle"));
                let script = Arc::clone(&script);
                thread::spawn(move || serve(stream, &*script));
            }
        });
        Self { port, connections }
    }

    /// Closes all connections.
    pub(crate) fn hang_up(&self) {
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        for stream in connections.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// A pipeline on it.
    pub(crate) fn pipeline(&self) -> Pipeline {
        Pipeline::new("p", jobs_beanstalk::NAME)
            .with_option("addr", format!("tcp://127.0.0.1:{}", self.port))
            .with_option("push_timeout", "3s")
    }

    /// A pipeline on it that soon loses its patience.
    pub(crate) fn impatient(&self) -> Pipeline {
        self.pipeline().with_option("push_timeout", "300ms")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.hang_up();
    }
}

pub(crate) async fn connect(pipeline: Pipeline) -> Result<Arc<dyn Driver>> {
    let mut registry = Registry::new();
    registry.register(jobs_beanstalk::constructor())?;
    registry.connect(pipeline).await
}

/// Connects and consumes.
pub(crate) async fn start(pipeline: Pipeline) -> Result<(Arc<dyn Driver>, Queue)> {
    let driver = connect(pipeline.clone()).await?;
    let queue = Queue::new();
    driver.run(queue.open_lane(&pipeline)).await?;
    Ok((driver, queue))
}

fn serve(stream: TcpStream, script: &Script) {
    let mut reader = BufReader::new(stream.try_clone().expect("a second handle"));
    let mut writer = stream;
    let mut line = String::new();
    while {
        line.clear();
        reader.read_line(&mut line).is_ok_and(|read| read > 0)
    } {
        let command = line.trim_end();
        if let Some(length) = command.strip_prefix("put ").and_then(|rest| rest.split(' ').nth(3)) {
            let mut body = vec![0; length.parse::<usize>().expect("a length") + 2];
            if reader.read_exact(&mut body).is_err() {
                return;
            }
        }
        let said = match script(command).unwrap_or_else(|| usual(command)) {
            Say::Bytes(bytes) => writer.write_all(&bytes),
            Say::Close => return drop(writer.shutdown(Shutdown::Both)),
            Say::Nothing => {
                // Until the other side, or the test, hangs up.
                let _ = reader.read_to_end(&mut Vec::new());
                return;
            }
        };
        if said.is_err() {
            return;
        }
    }
}

fn usual(command: &str) -> Say {
    let (word, rest) = command.split_once(' ').unwrap_or((command, ""));
    let with_body = |body: &str| Say::line(&format!("OK {}\r\n{body}", body.len()));
    Say::line(match word {
        "use" => return Say::line(&format!("USING {rest}")),
        "list-tube-used" => "USING default",
        "watch" | "ignore" => "WATCHING 1",
        "put" => "INSERTED 1",
        "delete" => "DELETED",
        "release" => "RELEASED",
        "bury" => "BURIED",
        "touch" => "TOUCHED",
        "stats" => return with_body("---\nmax-job-size: 65535\nbinlog-current-index: 1\n"),
        "stats-tube" => return with_body("---\ncurrent-jobs-ready: 0\n"),
        "stats-job" => return with_body("---\nreserves: 1\nreleases: 0\npri: 10\nttr: 30\n"),
        "reserve-with-timeout" => {
            thread::sleep(Duration::from_secs(rest.parse().expect("seconds")));
            "TIMED_OUT"
        }
        "quit" => return Say::Close,
        _ => "UNKNOWN_COMMAND",
    })
}
