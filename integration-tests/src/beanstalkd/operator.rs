//! What people do to a server by hand, past every driver.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use jobs_core::{Error, ErrorKind, Result};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// A plain connection.
#[derive(Debug)]
pub struct Operator(BufReader<TcpStream>);

/// A line, and what came behind it.
type Reply = (String, Vec<u8>);

fn wrong(error: std::io::Error) -> Error {
    Error::new(ErrorKind::Connection, "operate").with_source(error)
}

impl Operator {
    pub(super) async fn connect(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await.map_err(wrong)?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Sends a command, with a body if there is one, and returns the reply's line and body.
    ///
    /// # Errors
    /// If the connection breaks.
    pub async fn call(&mut self, command: &str, body: Option<&[u8]>) -> Result<Reply> {
        self.try_call(command, body).await.map_err(wrong)
    }

    async fn try_call(&mut self, command: &str, body: Option<&[u8]>) -> std::io::Result<Reply> {
        let mut request = format!("{command}\r\n").into_bytes();
        if let Some(body) = body {
            request.extend_from_slice(body);
            request.extend_from_slice(b"\r\n");
        }
        self.0.get_mut().write_all(&request).await?;
        let mut line = String::new();
        self.0.read_line(&mut line).await?;
        let line = line.trim_end().to_owned();
        let mut words = line.split(' ');
        let length = match words.next() {
            Some("OK") => words.next(),
            Some("RESERVED" | "FOUND") => words.nth(1),
            _ => None,
        };
        let mut body = vec![0; length.and_then(|n| n.parse::<usize>().ok()).map_or(0, |n| n + 2)];
        self.0.read_exact(&mut body).await?;
        body.truncate(body.len().saturating_sub(2));
        Ok((line, body))
    }

    /// Puts a job into a tube, and returns its number.
    ///
    /// # Errors
    /// If the connection breaks, or the server does not take it.
    pub async fn put(&mut self, tube: &str, body: &[u8]) -> Result<u64> {
        self.call(&format!("use {tube}"), None).await?;
        let command = format!("put 10 0 30 {}", body.len());
        let (line, _) = self.call(&command, Some(body)).await?;
        let id = line.strip_prefix("INSERTED ").and_then(|id| id.parse().ok());
        id.ok_or_else(|| Error::new(ErrorKind::Broker, "operate").with_context(line))
    }

    /// Figures by their names: of the server (`stats`), a tube or a job.
    ///
    /// # Errors
    /// If the connection breaks.
    pub async fn stats(&mut self, command: &str) -> Result<BTreeMap<String, String>> {
        let (_, body) = self.call(command, None).await?;
        let text = String::from_utf8_lossy(&body).into_owned();
        let pairs = text.lines().filter_map(|line| line.split_once(": "));
        Ok(pairs.map(|(name, figure)| (name.to_owned(), figure.to_owned())).collect())
    }

    /// One figure of the server.
    ///
    /// # Errors
    /// If the connection breaks, or there is none of that name.
    pub async fn figure(&mut self, name: &str) -> Result<u64> {
        let figure = self.stats("stats").await?.get(name).and_then(|figure| figure.parse().ok());
        figure.ok_or_else(|| Error::new(ErrorKind::NotFound, "operate").with_context(name))
    }

    /// Deletes what is in a tube: delayed, ready and buried.
    ///
    /// # Errors
    /// If the connection breaks.
    pub async fn empty(&mut self, tube: &str) -> Result<()> {
        self.call(&format!("use {tube}"), None).await?;
        for peek in ["peek-delayed", "peek-ready", "peek-buried"] {
            loop {
                let (line, _) = self.call(peek, None).await?;
                let Some(id) = line.split(' ').nth(1).filter(|_| line.starts_with("FOUND ")) else {
                    break;
                };
                self.call(&format!("delete {id}"), None).await?;
            }
        }
        Ok(())
    }
}
