//! A connection: what the client does, with its edges taken off.
//!
//! Every call blocks, for ever if the server is silent. The threads of [`pool`](crate::pool) make
//! them.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, ToSocketAddrs};
use std::time::{Duration, Instant};

use beanstalkc::{Beanstalkc, BeanstalkcError};
use jobs_core::{Bytes, Error};

use crate::config::Address;
use crate::error::{Failure, no_ipv4, unreachable, unresolved};

/// Where and how to connect.
#[derive(Clone, Debug)]
pub(crate) struct Connector {
    pub(crate) address: Address,
    /// For one attempt, all addresses of a name together.
    pub(crate) timeout: Duration,
    pub(crate) tube: String,
}

/// What a command answers.
pub(crate) type Answer<T> = Result<T, Failure>;

/// One connection that uses the tube.
#[derive(Debug)]
pub(crate) struct Client(Beanstalkc);

/// A job that this connection has reserved.
#[derive(Debug)]
pub(crate) struct Reserved {
    pub(crate) id: u64,
    pub(crate) body: Bytes,
}

/// Figures by their names.
#[derive(Debug)]
pub(crate) struct Stats(HashMap<String, String>);

/// What is put.
#[derive(Debug)]
pub(crate) struct Put {
    pub(crate) body: Vec<u8>,
    pub(crate) priority: u32,
    /// In seconds, as the next.
    pub(crate) delay: u32,
    pub(crate) time_to_run: u32,
}

impl Connector {
    /// Resolves the name, because the client panics if it cannot or finds no IPv4 address, then
    /// tries its addresses in turn.
    pub(crate) fn open(&self) -> Result<Client, Error> {
        let deadline = Instant::now() + self.timeout;
        let mut refused = BeanstalkcError::ConnectionError("timed out".into());
        for address in self.addresses()? {
            let left = deadline.saturating_duration_since(Instant::now());
            let client = Beanstalkc::new()
                .host(&address.to_string())
                .port(self.address.port)
                .connection_timeout(Some(left.max(Duration::from_millis(1))))
                .connect();
            match client {
                Ok(client) => return self.prepared(Client(client)),
                Err(error) => refused = error,
            }
        }
        Err(unreachable(&self.address, &refused))
    }

    fn addresses(&self) -> Result<Vec<Ipv4Addr>, Error> {
        let Address { host, port } = &self.address;
        let found = (host.as_str(), *port).to_socket_addrs();
        let found = found.map_err(|error| unresolved(&self.address, error))?;
        let ipv4: Vec<_> = found
            .filter_map(|address| match address.ip() {
                IpAddr::V4(address) => Some(address),
                IpAddr::V6(_) => None,
            })
            .collect();
        if ipv4.is_empty() { Err(no_ipv4(&self.address)) } else { Ok(ipv4) }
    }

    fn prepared(&self, mut client: Client) -> Result<Client, Error> {
        match client.0.use_tube(&self.tube) {
            Ok(_) => Ok(client),
            Err(error) => Err(Failure::from(error).error("connect")),
        }
    }
}

impl Client {
    /// Makes jobs of this tube, and of no other, come to this connection.
    pub(crate) fn watch(&mut self, tube: &str) -> Answer<()> {
        const WATCHED_BY_DEFAULT: &str = "default";
        self.0.watch(tube)?;
        if tube != WATCHED_BY_DEFAULT {
            self.0.ignore(WATCHED_BY_DEFAULT)?;
        }
        Ok(())
    }

    /// Finds out whether the connection lives.
    pub(crate) fn check(&mut self) -> Answer<()> {
        self.0.using()?;
        Ok(())
    }

    pub(crate) fn put(&mut self, put: &Put) -> Answer<()> {
        // The client makes a `String` of the body without a look at it.
        debug_assert!(std::str::from_utf8(&put.body).is_ok());
        let seconds = |seconds: u32| Duration::from_secs(seconds.into());
        let put = self.0.put(&put.body, put.priority, seconds(put.delay), seconds(put.time_to_run));
        put.map(drop).map_err(|error| Failure::from(error).with_body())
    }

    /// The next job, if one comes within these whole seconds.
    pub(crate) fn reserve(&mut self, timeout: Duration) -> Answer<Reserved> {
        let job = self.0.reserve_with_timeout(timeout)?;
        Ok(Reserved { id: job.id(), body: Bytes::copy_from_slice(job.body()) })
    }

    pub(crate) fn delete(&mut self, id: u64) -> Answer<()> {
        Ok(self.0.delete(id)?)
    }

    pub(crate) fn release(&mut self, id: u64, priority: u32, delay: u32) -> Answer<()> {
        Ok(self.0.release(id, priority, Duration::from_secs(delay.into()))?)
    }

    pub(crate) fn bury(&mut self, id: u64, priority: u32) -> Answer<()> {
        Ok(self.0.bury(id, priority)?)
    }

    pub(crate) fn touch(&mut self, id: u64) -> Answer<()> {
        Ok(self.0.touch(id)?)
    }

    pub(crate) fn peek_buried(&mut self) -> Answer<Reserved> {
        let job = self.0.peek_buried()?;
        Ok(Reserved { id: job.id(), body: Bytes::copy_from_slice(job.body()) })
    }

    pub(crate) fn kick_job(&mut self, id: u64) -> Answer<()> {
        Ok(self.0.kick_job(id)?)
    }

    pub(crate) fn stats(&mut self) -> Answer<Stats> {
        Ok(Stats(self.0.stats()?))
    }

    pub(crate) fn stats_tube(&mut self, tube: &str) -> Answer<Stats> {
        Ok(Stats(self.0.stats_tube(tube)?))
    }

    pub(crate) fn stats_job(&mut self, id: u64) -> Answer<Stats> {
        Ok(Stats(self.0.stats_job(id)?))
    }
}

impl Stats {
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// None if the server does not tell.
    pub(crate) fn number<T: std::str::FromStr>(&self, name: &str) -> Option<T> {
        self.text(name)?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use jobs_core::ErrorKind;

    use super::*;

    fn open(host: &str, port: u16) -> Error {
        let address = Address { host: host.into(), port };
        let timeout = Duration::from_secs(5);
        let connector = Connector { address, timeout, tube: "t".into() };
        connector.open().map(drop).expect_err("nobody is there")
    }

    #[test]
    fn what_the_client_would_panic_on_is_an_error() {
        let unresolved = open("no-such-name.invalid", 11300);
        assert_eq!((unresolved.kind(), unresolved.is_retryable()), (ErrorKind::Connection, true));
        // As a name that has only such an address.
        let ipv6 = open("::1", 11300);
        assert_eq!((ipv6.kind(), ipv6.is_retryable()), (ErrorKind::Unsupported, false));
        assert!(ipv6.to_string().contains("IPv4 only"), "{ipv6}");
    }

    #[test]
    fn nobody_listens() {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = listener.local_addr().expect("bound").port();
        drop(listener);
        let error = open("127.0.0.1", port);
        assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Connection, true));
    }
}
