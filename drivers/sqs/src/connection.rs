//! Clients of the service: one for all pipelines whose connection options agree.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use aws_config::BehaviorVersion;
use aws_config::Region;
use aws_config::retry::RetryConfig;
use aws_config::stalled_stream_protection::StalledStreamProtectionConfig;
use aws_config::timeout::TimeoutConfig;
use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::{Builder, Credentials, SharedHttpClient};
use aws_smithy_http_client::tls::{self, rustls_provider::CryptoMode};
use jobs_core::{Error, ErrorKind, ExposeSecret, Result};
use tokio::sync::OnceCell;

use crate::NAME;
use crate::config::SqsConfig;
use crate::error::closed;

/// Servers close connections that are idle for a minute or more. A request that meets the close is
/// not answered, so that ours go first.
const IDLE_CONNECTION: Duration = Duration::from_secs(20);

/// The region that requests to an endpoint of one's own are signed for, if none is named.
const ANY_REGION: &str = "us-east-1";

/// The clients that live.
#[derive(Clone, Default)]
pub(crate) struct Directory(Arc<Mutex<HashMap<Key, Weak<Slot>>>>);

/// Everything that two pipelines with one client have in common. Never shown: it has secrets.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    region: Option<String>,
    endpoint: Option<String>,
    profile: Option<String>,
    credentials: Option<(String, String, Option<String>)>,
    operation_timeout: Duration,
    connect_timeout: Duration,
    wait_time: Duration,
}

/// Made once, by whoever comes first.
#[derive(Default)]
struct Slot(OnceCell<Clients>);

#[derive(Clone)]
struct Clients {
    client: Client,
    /// Whose requests may wait at the service.
    polling: Client,
}

/// A pipeline's right to the clients, until it is closed.
pub(crate) struct Link {
    slot: Mutex<Option<Arc<Slot>>>,
}

impl Directory {
    /// The clients of these options.
    pub(crate) async fn connect(&self, config: &SqsConfig) -> Result<Link> {
        let slot = self.slot(Key::of(config));
        slot.0.get_or_try_init(|| Clients::new(config)).await?;
        Ok(Link { slot: Mutex::new(Some(slot)) })
    }

    fn slot(&self, key: Key) -> Arc<Slot> {
        let mut slots = lock(&self.0);
        slots.retain(|_, slot| slot.strong_count() > 0);
        if let Some(slot) = slots.get(&key).and_then(Weak::upgrade) {
            return slot;
        }
        let slot = Arc::default();
        slots.insert(key, Arc::downgrade(&slot));
        slot
    }
}

impl Key {
    fn of(config: &SqsConfig) -> Self {
        let credentials = config.credentials.as_ref().map(|known| {
            let open = |secret: &jobs_core::Secret| secret.expose_secret().to_owned();
            (known.key.clone(), open(&known.secret), known.session_token.as_ref().map(open))
        });
        Self {
            region: config.region.clone(),
            endpoint: config.endpoint.clone(),
            profile: config.profile.clone(),
            credentials,
            operation_timeout: config.operation_timeout,
            connect_timeout: config.connect_timeout,
            wait_time: config.wait_time,
        }
    }
}

impl Clients {
    async fn new(config: &SqsConfig) -> Result<Self> {
        let http = aws_smithy_http_client::Builder::new()
            .pool_idle_timeout(IDLE_CONNECTION)
            .tls_provider(tls::Provider::Rustls(CryptoMode::Ring))
            .build_https();
        let builder = match (&config.credentials, Self::region(config)) {
            (Some(known), Some(region)) => {
                let open = |secret: &jobs_core::Secret| secret.expose_secret().to_owned();
                let token = known.session_token.as_ref().map(open);
                let credentials =
                    Credentials::new(&known.key, open(&known.secret), token, None, NAME);
                Builder::new()
                    .behavior_version(BehaviorVersion::latest())
                    .http_client(http)
                    .region(region)
                    .credentials_provider(credentials)
            }
            _ => Self::from_environment(config, http).await?,
        };
        let builder = builder
            // They would send twice what may have been stored, and nobody could tell.
            .retry_config(RetryConfig::disabled())
            // It takes a long poll for a stall.
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled());
        let builder = match &config.endpoint {
            Some(endpoint) => builder.endpoint_url(endpoint),
            None => builder,
        };
        let connecting = config.connect_timeout.min(config.operation_timeout);
        let within = |time: Duration| {
            TimeoutConfig::builder()
                .connect_timeout(connecting)
                // Connecting ends first: what was not sent is told apart from what was not answered.
                .operation_attempt_timeout(time + connecting)
                .build()
        };
        let polling = within(config.operation_timeout + config.wait_time);
        let polling = builder.clone().timeout_config(polling).build();
        let client = builder.timeout_config(within(config.operation_timeout)).build();
        Ok(Self { client: Client::from_conf(client), polling: Client::from_conf(polling) })
    }

    fn region(config: &SqsConfig) -> Option<Region> {
        let own = config.endpoint.as_ref().map(|_| ANY_REGION.to_owned());
        config.region.clone().or(own).map(Region::new)
    }

    /// What the options leave open is found as the service's other tools do.
    async fn from_environment(config: &SqsConfig, http: SharedHttpClient) -> Result<Builder> {
        let mut loader = aws_config::defaults(BehaviorVersion::latest()).http_client(http);
        if let Some(profile) = &config.profile {
            loader = loader.profile_name(profile);
        }
        if let Some(region) = Self::region(config) {
            loader = loader.region(region);
        }
        if let Some(known) = &config.credentials {
            let open = |secret: &jobs_core::Secret| secret.expose_secret().to_owned();
            let token = known.session_token.as_ref().map(open);
            let credentials = Credentials::new(&known.key, open(&known.secret), token, None, NAME);
            loader = loader.credentials_provider(credentials);
        }
        let loaded = loader.load().await;
        if loaded.region().is_none() {
            let error = Error::new(ErrorKind::Config, "connect").with_driver(NAME);
            return Err(error.with_context(
                "no region: neither the option `region` nor the environment names one",
            ));
        }
        Ok(Builder::from(&loaded))
    }
}

impl Link {
    /// For requests that are answered at once.
    pub(crate) fn client(&self) -> Result<Client> {
        self.clients().map(|clients| clients.client)
    }

    /// For requests that wait at the service.
    pub(crate) fn polling(&self) -> Result<Client> {
        self.clients().map(|clients| clients.polling)
    }

    fn clients(&self) -> Result<Clients> {
        let slot = lock(&self.slot).clone();
        slot.and_then(|slot| slot.0.get().cloned()).ok_or_else(|| closed("request"))
    }

    /// Leaves the connections to others, or to their end.
    pub(crate) fn close(&self) {
        let slot = lock(&self.slot).take();
        drop(slot);
    }
}

/// Nothing of others runs under these locks.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Directory").field("clients", &lock(&self.0).len()).finish()
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("open", &lock(&self.slot).is_some()).finish()
    }
}
