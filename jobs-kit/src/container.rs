//! A broker in a container, which can be killed and paused.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use jobs_core::{Error, ErrorKind, Result};
use testcontainers::bollard::Docker;
use testcontainers::core::client::docker_client_instance;
use testcontainers::core::{ExecCommand, IntoContainerPort};
use testcontainers::runners::AsyncRunner;
use testcontainers::{
    ContainerAsync, ContainerRequest, GenericImage, ImageExt, TestcontainersError,
};
use tokio::runtime::{Builder, Runtime};
use tokio::time::{Instant, sleep, timeout_at};

use crate::wait::within;

/// What one order to the engine may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Tells whether the broker at this address serves clients: best by speaking its protocol, since a
/// published port takes connections before the broker does. Asked again and again.
pub type Ready = Arc<
    dyn Fn(SocketAddr) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send>> + Send + Sync,
>;

/// A broker in a container, on ports of the loopback interface that outlive a restart.
///
/// Its connection to the container engine lives on a thread of its own, so that one container
/// serves the cases of a whole program, each of which has its own runtime. It is removed when this
/// is dropped, also when a case panics, and when the program gets SIGINT, SIGTERM or SIGQUIT.
pub struct Container {
    /// Taken out by the drop.
    container: Option<Arc<ContainerAsync<GenericImage>>>,
    docker: Docker,
    /// By the port inside.
    addresses: BTreeMap<u16, SocketAddr>,
    port: u16,
    ready: Ready,
    deadline: Duration,
}

/// Free ports of the loopback interface for a container that is about to start: for brokers that have
/// to be told the address under which clients reach them.
#[derive(Debug)]
pub struct Ports {
    /// By the port inside.
    addresses: BTreeMap<u16, SocketAddr>,
    /// The first of the ports inside.
    first: u16,
    /// Until the container is about to start, so that nobody else takes them.
    held: Vec<TcpListener>,
}

impl Ports {
    /// One for each of the ports inside.
    ///
    /// # Errors
    /// The system's, if there is none.
    ///
    /// # Panics
    /// If no port is given.
    pub fn reserve(ports: &[u16]) -> Result<Self> {
        let first = *ports.first().expect("a port to be ready on");
        let mut held = Vec::with_capacity(ports.len());
        let mut addresses = BTreeMap::new();
        for port in ports {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
            let listener = listener.map_err(|error| failed("find a free port", error))?;
            let address =
                listener.local_addr().map_err(|error| failed("find a free port", error))?;
            held.push(listener);
            addresses.insert(*port, address);
        }
        Ok(Self { addresses, first, held })
    }

    /// Where a port of the broker is going to be reached.
    ///
    /// # Panics
    /// If it is not one of those that were asked for.
    #[must_use]
    pub fn address(&self, port: u16) -> SocketAddr {
        published(&self.addresses, port)
    }
}

fn published(addresses: &BTreeMap<u16, SocketAddr>, port: u16) -> SocketAddr {
    let address = addresses.get(&port);
    *address.unwrap_or_else(|| panic!("port {port} is not published"))
}

/// Where all orders to the engine are given.
fn engine() -> &'static Runtime {
    static ENGINE: OnceLock<Runtime> = OnceLock::new();
    ENGINE.get_or_init(|| {
        let mut builder = Builder::new_multi_thread();
        // Two, because a drop blocks one of them.
        builder.worker_threads(2).thread_name("containers").enable_all();
        builder.build().expect("the system allows threads")
    })
}

/// Runs to its end, whatever becomes of the caller.
async fn on_engine<T: Send + 'static>(
    what: &'static str,
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    let done = engine().spawn(work).await;
    done.unwrap_or_else(|error| Err(failed(what, error)))
}

fn failed(
    what: &'static str,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> Error {
    Error::new(ErrorKind::Broker, what).with_source(source)
}

impl Container {
    /// Starts a container and waits until `ready` says so on the first of the ports, at most for
    /// `deadline`.
    ///
    /// `request` names the image, and environment, files and command if it needs some; the ports
    /// inside that are to be reached are given here.
    ///
    /// # Errors
    /// `Connection` if no engine answers; `Broker` if the image cannot be had, or the container
    /// does not start or is not ready in time, with its last words.
    ///
    /// # Cancel safety
    /// The container is removed when it has started.
    ///
    /// # Panics
    /// If no port is given.
    pub async fn start(
        request: impl Into<ContainerRequest<GenericImage>>,
        ports: &[u16],
        ready: Ready,
        deadline: Duration,
    ) -> Result<Self> {
        Self::start_on(Ports::reserve(ports)?, request, ready, deadline).await
    }

    /// As [`start`](Self::start), on ports that were reserved.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    ///
    /// # Cancel safety
    /// As [`start`](Self::start).
    pub async fn start_on(
        ports: Ports,
        request: impl Into<ContainerRequest<GenericImage>>,
        ready: Ready,
        deadline: Duration,
    ) -> Result<Self> {
        let request = request.into();
        on_engine("start a container", async move {
            let docker = docker().await?;
            let Ports { addresses, first, held } = ports;
            let request = publish(request, &addresses);
            drop(held);
            let started = request.start().await;
            let container = started.map_err(|error| failed("start a container", error))?;
            let container = Some(Arc::new(container));
            let container = Self { container, docker, addresses, port: first, ready, deadline };
            container.wait_until_ready().await?;
            Ok(container)
        })
        .await
    }

    /// Where a port of the broker is reached. It is the same after a restart.
    ///
    /// # Panics
    /// If the container was not started with it.
    #[must_use]
    pub fn address(&self, port: u16) -> SocketAddr {
        published(&self.addresses, port)
    }

    /// Kills it, as a power cut does, and returns when it is dead.
    ///
    /// # Errors
    /// The engine's.
    pub async fn kill(&self) -> Result<()> {
        let (docker, container) = (self.docker.clone(), Arc::clone(self.container()));
        on_engine("kill a container", async move {
            // The default is SIGKILL.
            let killed = docker.kill_container(container.id(), None).await;
            killed.map_err(|error| failed("kill a container", error))?;
            until(PATIENCE, "the container to die", || {
                let container = Arc::clone(&container);
                async move {
                    match container.is_running().await {
                        Ok(false) => Ok(()),
                        answer => Err(format!("{answer:?}")),
                    }
                }
            })
            .await
        })
        .await
    }

    /// Starts it again after [`kill`](Self::kill), with the files it had, and waits until it is
    /// ready. Does nothing but wait if it runs.
    ///
    /// # Errors
    /// The engine's; or it is not ready in time.
    pub async fn restart(&self) -> Result<()> {
        let container = Arc::clone(self.container());
        let started = on_engine("start a container", async move {
            container.start().await.map_err(|error| failed("start a container", error))
        });
        started.await?;
        self.ready().await
    }

    /// Stops all its processes where they are, connections open.
    ///
    /// # Errors
    /// The engine's.
    pub async fn pause(&self) -> Result<()> {
        let container = Arc::clone(self.container());
        on_engine("pause a container", async move {
            // On a busy machine the system may fail to stop them all at the first attempt.
            until(PATIENCE, "a container that pauses", || {
                let container = Arc::clone(&container);
                async move { container.pause().await.map_err(|error| error.to_string()) }
            })
            .await
        })
        .await
    }

    /// Lets them go on after [`pause`](Self::pause), and waits until it is ready. Does nothing but
    /// wait if it is not paused.
    ///
    /// # Errors
    /// The engine's; or it is not ready in time.
    pub async fn unpause(&self) -> Result<()> {
        let (docker, container) = (self.docker.clone(), Arc::clone(self.container()));
        let unpaused = on_engine("unpause a container", async move {
            let found = docker.inspect_container(container.id(), None).await;
            let found = found.map_err(|error| failed("unpause a container", error))?;
            match found.state.and_then(|state| state.paused) {
                Some(false) => Ok(()),
                _ => {
                    container.unpause().await.map_err(|error| failed("unpause a container", error))
                }
            }
        });
        unpaused.await?;
        self.ready().await
    }

    /// Runs a command inside and returns what it wrote to its standard output.
    ///
    /// # Errors
    /// The engine's; or the command failed, with what it wrote to its standard error.
    pub async fn run<S: Into<String>>(
        &self,
        command: impl IntoIterator<Item = S>,
    ) -> Result<String> {
        let command: Vec<String> = command.into_iter().map(Into::into).collect();
        let container = Arc::clone(self.container());
        // On a thread of its own: this future of the client may not go from one to another.
        let ran = engine().spawn_blocking(move || engine().block_on(run(&container, command)));
        ran.await.unwrap_or_else(|error| Err(failed("run a command in a container", error)))
    }

    /// All that it has written to its standard output, and then to its standard error, also before it
    /// was killed.
    ///
    /// # Errors
    /// The engine's.
    pub async fn said(&self) -> Result<String> {
        let container = Arc::clone(self.container());
        let what = "read what a container said";
        on_engine(what, async move {
            let out = container.stdout_to_vec().await.map_err(|error| failed(what, error))?;
            let err = container.stderr_to_vec().await.map_err(|error| failed(what, error))?;
            Ok(String::from_utf8_lossy(&[out, err].concat()).into_owned())
        })
        .await
    }

    fn container(&self) -> &Arc<ContainerAsync<GenericImage>> {
        self.container.as_ref().expect("taken by the drop only")
    }

    /// On the engine's runtime, so that no task of a client is left in the caller's.
    async fn ready(&self) -> Result<()> {
        let (ready, address) = (Arc::clone(&self.ready), self.address(self.port));
        let deadline = self.deadline;
        on_engine("wait for a container", async move { wait(&ready, address, deadline).await })
            .await
    }

    async fn wait_until_ready(&self) -> Result<()> {
        let waited = wait(&self.ready, self.address(self.port), self.deadline).await;
        match waited {
            Ok(()) => Ok(()),
            Err(error) => {
                let context = format!("{error}; {}", self.last_words().await);
                Err(Error::new(error.kind(), "start a container").with_context(context))
            }
        }
    }

    async fn last_words(&self) -> String {
        let text = self.said().await.unwrap_or_else(|error| error.with_sources());
        let lines: Vec<_> = text.lines().collect();
        format!("it said last:\n{}", lines[lines.len().saturating_sub(20)..].join("\n"))
    }
}

async fn run(container: &ContainerAsync<GenericImage>, command: Vec<String>) -> Result<String> {
    let what = "run a command in a container";
    let line = command.join(" ");
    let ran = async {
        let mut ran = container.exec(ExecCommand::new(command)).await?;
        let (stdout, stderr) = (ran.stdout_to_vec().await?, ran.stderr_to_vec().await?);
        Ok::<_, TestcontainersError>((ran.exit_code().await?, stdout, stderr))
    };
    let ran = within(PATIENCE, what, ran).await.map_err(|error| failed(what, error))?;
    let (code, stdout, stderr) = ran.map_err(|error| failed(what, error))?;
    if code == Some(0) {
        return Ok(String::from_utf8_lossy(&stdout).into_owned());
    }
    let said = format!("`{line}` ended with {code:?}: {}", String::from_utf8_lossy(&stderr));
    Err(Error::new(ErrorKind::Broker, what).with_context(said))
}

async fn wait(ready: &Ready, address: SocketAddr, deadline: Duration) -> Result<()> {
    until(deadline, "a broker that is ready", || ready(address)).await
}

/// Asks again and again until the answer is `Ok`. [`Fixture::eventually`](crate::Fixture) takes an
/// async closure, whose future the compiler does not know to be `Send`.
async fn until<F: Future<Output = Result<(), String>>>(
    deadline: Duration,
    what: &'static str,
    mut ask: impl FnMut() -> F,
) -> Result<()> {
    let end = Instant::now() + deadline;
    loop {
        let last = match timeout_at(end, ask()).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(last)) => last,
            Err(_) => "no answer".to_owned(),
        };
        if Instant::now() >= end {
            let context = format!("not within {deadline:?}, found {last}");
            return Err(Error::new(ErrorKind::Broker, what).with_context(context));
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// The engine, if there is one.
async fn docker() -> Result<Docker> {
    let unreachable = |error: Box<dyn std::error::Error + Send + Sync>| {
        Error::new(ErrorKind::Connection, "start a container")
            .with_context("no container engine answers")
            .with_source(error)
    };
    let docker = docker_client_instance().await.map_err(|error| unreachable(error.into()))?;
    match within(PATIENCE, "the engine", docker.ping()).await {
        Ok(Ok(_)) => Ok(docker),
        Ok(Err(error)) => Err(unreachable(error.into())),
        Err(error) => Err(unreachable(error.into())),
    }
}

/// Maps each port to one that is known. One that the engine chose would change at a restart.
fn publish(
    mut request: ContainerRequest<GenericImage>,
    addresses: &BTreeMap<u16, SocketAddr>,
) -> ContainerRequest<GenericImage> {
    for (port, address) in addresses {
        request = request.with_mapped_port(address.port(), port.tcp());
    }
    request.with_host_config_modifier(|config| {
        let bindings = config.port_bindings.iter_mut().flat_map(|ports| ports.values_mut());
        for binding in bindings.flatten().flatten() {
            binding.host_ip = Some(Ipv4Addr::LOCALHOST.to_string());
        }
    })
}

impl Drop for Container {
    fn drop(&mut self) {
        let container = self.container.take();
        // Its own drop removes it, and wants to block within a runtime: the caller may be within
        // another, where that is not allowed. A panic in it has nowhere to go.
        let remove = move || {
            let _entered = engine().enter();
            drop(container);
        };
        let _ = std::thread::spawn(remove).join();
    }
}

impl fmt::Debug for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Container").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}
