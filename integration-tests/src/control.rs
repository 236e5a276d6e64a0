//! What tests do to a server, whichever it is.

use std::net::SocketAddr;
use std::time::Duration;

use jobs_core::{Error, ErrorKind, Result};
use jobs_kit::{Container, Fault, Proxy};
use tokio::time::{Instant, sleep};

/// What a server that serves may take until it has everything it had.
const RESTORING: Duration = Duration::from_secs(60);

/// What a server that is back still lacks, read from all it has said.
pub(crate) type Lacking = fn(&str) -> Option<String>;

/// A server's container, if it is ours, and the proxy before it, if it is to be disturbed.
#[derive(Debug, Default)]
pub struct Control {
    pub(crate) proxy: Option<Proxy>,
    pub(crate) container: Option<Container>,
    /// Of a server that serves before it has everything it had: clients are kept out until it has.
    pub(crate) lacking: Option<Lacking>,
}

impl Control {
    pub(crate) fn of(container: Container) -> Self {
        Self { container: Some(container), ..Self::default() }
    }

    /// Where a driver connects: to the proxy, if there is one.
    pub(crate) fn way_to(&self, address: SocketAddr) -> SocketAddr {
        self.proxy.as_ref().map_or(address, Proxy::address)
    }

    /// The proxy before it.
    ///
    /// # Panics
    /// If it is not one that is disturbed.
    #[must_use]
    pub fn proxy(&self) -> &Proxy {
        self.proxy.as_ref().expect("a server that is disturbed has a proxy")
    }

    /// The container it runs in.
    ///
    /// # Errors
    /// `Unsupported`: the environment names the server, so it is somebody else's; or it was started for others.
    pub(crate) fn container(&self) -> Result<&Container> {
        self.container.as_ref().ok_or_else(|| {
            Error::new(ErrorKind::Unsupported, "control a server")
                .with_context("it is somebody else's, or shared by cases")
        })
    }

    /// Begins a fault other than [`Fault::Rebalance`], which is of a group.
    ///
    /// # Errors
    /// The engine's.
    pub async fn begin(&self, fault: Fault) -> Result<()> {
        match (fault, &self.container) {
            (Fault::Kill, _) => {
                self.container()?.kill().await?;
                self.gate().into_iter().for_each(Proxy::refuse);
                Ok(())
            }
            (Fault::Stall, Some(container)) => container.pause().await,
            _ => self.proxy().begin(fault).await,
        }
    }

    /// Ends a fault other than [`Fault::Rebalance`].
    ///
    /// # Errors
    /// The engine's, or it does not come back in time.
    pub async fn end(&self, fault: Fault) -> Result<()> {
        match (fault, &self.container) {
            (Fault::Kill, _) => {
                self.container()?.restart().await?;
                self.restored().await?;
                self.gate().into_iter().for_each(Proxy::restore);
                Ok(())
            }
            (Fault::Stall, Some(container)) => container.unpause().await,
            _ => {
                self.proxy().restore();
                Ok(())
            }
        }
    }

    /// What clients are kept out by until the server has everything it had.
    fn gate(&self) -> Option<&Proxy> {
        self.lacking.and(self.proxy.as_ref())
    }

    /// Waits until the server has everything it had before it was killed.
    async fn restored(&self) -> Result<()> {
        let Some(lacking) = self.lacking else { return Ok(()) };
        let end = Instant::now() + RESTORING;
        while let Some(lacked) = lacking(&self.container()?.said().await?) {
            if Instant::now() >= end {
                let error = Error::new(ErrorKind::Broker, "start a server again");
                return Err(error.with_context(lacked));
            }
            sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }
}

/// It cannot be started, or is not what was expected.
pub(crate) fn wrong(
    what: &'static str,
    error: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> Error {
    Error::new(ErrorKind::InvalidState, what).with_source(error)
}

/// A container that did not start: what to do about it.
pub(crate) fn not_started(
    error: Error,
    operation: &'static str,
    images: &str,
    variable: &str,
) -> Error {
    let hint = format!("{error}: run `compose/images {images}`, or set {variable}");
    Error::new(error.kind(), operation).with_context(hint).with_source(error)
}
