//! When the program is asked to end.

use std::future::pending;

/// Waits for Ctrl-C, or on Unix for SIGTERM: for [`Worker::run_until`](crate::Worker::run_until).
///
/// From the first poll on, these signals no longer end the program by themselves. A signal that the
/// system does not let us watch is logged and never comes.
///
/// # Panics
/// Outside a tokio runtime that has I/O enabled.
pub async fn shutdown_signal() {
    tokio::select! {
        () = ctrl_c() => tracing::info!("interrupted, shutting down"),
        () = terminate() => tracing::info!("asked to terminate, shutting down"),
    }
}

async fn ctrl_c() {
    if let Err(error) = tokio::signal::ctrl_c().await {
        tracing::error!(%error, "cannot watch for Ctrl-C");
        pending::<()>().await;
    }
}

#[cfg(unix)]
async fn terminate() {
    use tokio::signal::unix::{SignalKind, signal};

    match signal(SignalKind::terminate()) {
        Ok(mut signal) => {
            signal.recv().await;
        }
        Err(error) => {
            tracing::error!(%error, "cannot watch for SIGTERM");
            pending::<()>().await;
        }
    }
}

#[cfg(not(unix))]
async fn terminate() {
    pending::<()>().await;
}
