//! moto, a second implementation of SQS, as a process beside the tests.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use jobs_core::{Error, ErrorKind, Result};

use crate::elasticmq::Operator;

/// What `compose/moto/install` makes, and what is run with it.
const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../compose/moto");

/// A server that ends when this is dropped, or with this process: it reads from it until then.
#[derive(Debug)]
pub struct Moto {
    process: Child,
    port: u16,
}

impl Moto {
    /// Starts one on a free port of the loopback interface.
    ///
    /// # Errors
    /// If it is not installed, or does not start.
    pub fn start() -> Result<Self> {
        let folder = PathBuf::from(FOLDER);
        let spawned = Command::new(folder.join(".venv/bin/python"))
            .arg(folder.join("serve.py"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let wrong = |why: String| {
            Error::new(ErrorKind::Broker, "start moto")
                .with_context(format!("{why}: run `compose/moto/install`"))
        };
        let mut process = spawned.map_err(|error| wrong(error.to_string()))?;
        let mut said = String::new();
        let output = process.stdout.take().map(BufReader::new);
        let read = output.map(|mut output| output.read_line(&mut said));
        let moto = Self { process, port: said.trim().parse().unwrap_or(0) };
        match moto.port {
            0 => Err(wrong(format!("it said {said:?} ({read:?})"))),
            _ => Ok(moto),
        }
    }

    /// Where it is.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The bare client, to look and to do what others do.
    #[must_use]
    pub fn operator(&self) -> Operator {
        Operator::at(&self.url())
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        // One that has ended already cannot be killed, and is waited for all the same.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
