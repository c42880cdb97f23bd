//! Takes over new settings under running sessions: first everything that can fail, then the exchange, which can't.
//!
//! One reload runs at a time. It reads the file only when the one before has ended, so that the last reload that was
//! asked for has the newest file.

use std::{path::PathBuf, sync::Arc};

use tracing::{error, info};

use super::{
    ConfigurationRevision, Server, ServerContext, ServerError,
    admin_service::RunningAdmin,
    certificate, cluster_service,
    prepare::{Prepared, ServicePlan},
    reload_guard, sandbox_service, unix_time,
};
use crate::{
    config::{self, Settings},
    telemetry::outcome::ReloadRefusal,
};

impl Server {
    /// Reads the configuration database again and reloads. Returns the new revision. Counts and logs the result.
    ///
    /// # Errors
    /// Why the reload was refused; then nothing has changed.
    pub async fn reload_file(&self) -> Result<u64, ServerError> {
        let _one_at_a_time = self.0.reloading.lock().await;
        let file = self.0.settings.load().file.clone();
        let reloaded = match load(file.clone()).await {
            Ok(settings) => self.take_over(settings).await,
            Err(error) => Err(error),
        };
        self.0.telemetry.server.reload(reloaded.as_ref().err().map(|error| error.reason));
        match &reloaded {
            Ok(revision) => info!(file = %file.display(), revision, "configuration reloaded"),
            Err(why) => {
                self.0.revision.lock().last_error = Some(why.to_string());
                error!(file = %file.display(), reason = %why.reason,
                    "configuration not reloaded, nothing has changed:\n{why}");
            }
        }
        reloaded
    }

    /// Puts `settings` into force: opens and closes ports, and exchanges limits, certificate and Community servers.
    /// Sessions continue, also those of a closed port. Returns the new revision.
    ///
    /// When this returns, no client can connect to a closed port.
    ///
    /// # Errors
    /// Why the settings can't come into force; then nothing has changed.
    pub async fn reload(&self, settings: Settings) -> Result<u64, ServerError> {
        let _one_at_a_time = self.0.reloading.lock().await;
        self.take_over(settings).await
    }

    async fn take_over(&self, settings: Settings) -> Result<u64, ServerError> {
        check_running(&self.0)?;
        reload_guard::check(&self.0.settings.load(), &settings)?;
        let acceptor = certificate::load_for_reload(&settings).await?;
        let nodes = self.0.node.as_ref().map(|node| node.new_nodes(settings.cluster.as_ref())).transpose()?;
        let prepared = Prepared::for_reload(settings, acceptor, &self.0).await?;
        check_running(&self.0)?;
        match (&self.0.node, nodes) {
            (Some(node), Some(nodes)) => node.replace(nodes, prepared.settings.cluster.as_ref()),
            _ if prepared.settings.cluster.is_some() => cluster_service::warn_of_a_later_start(),
            _ => (),
        }
        let revision = exchange(&self.0, prepared).await;
        self.0.report_unused_sockets();
        Ok(revision)
    }
}

/// Checks that the server is not being stopped: a reload would open what was closed.
fn check_running(server: &ServerContext) -> Result<(), ServerError> {
    let refused = |why| Err(ServerError::new(ReloadRefusal::Stopping, format!("the program is being stopped: {why}")));
    if server.ports.is_stopped() {
        return refused("its ports are closed");
    }
    if server.ports.is_left() {
        return refused("its ports are left to the next process");
    }
    Ok(())
}

/// Reads the configuration database on a thread of its own, so that a slow disk holds up neither the admin endpoint nor
/// the health checks.
async fn load(file: PathBuf) -> Result<Settings, ServerError> {
    let refused = |what| ServerError::new(ReloadRefusal::Configuration, what);
    let loaded = tokio::task::spawn_blocking(move || config::load(&file)).await;
    loaded.map_err(|error| refused(error.to_string()))?.map_err(|errors| refused(errors.to_string()))
}

/// Exchanges the settings in force. Returns the new revision.
///
/// The server may be stopped at the same time. Stopping closes the ports first, and then takes what runs out of its
/// lock. So whoever starts something holds its lock, and has seen that the ports are not closed.
async fn exchange(server: &Arc<ServerContext>, prepared: Prepared) -> u64 {
    let Prepared { settings, acceptor, near_identity, listeners, sandbox, admin } = prepared;
    let sandbox_address = match sandbox {
        ServicePlan::Off => None,
        ServicePlan::Kept => server.sandbox.lock().as_ref().map(|service| service.address),
        ServicePlan::Bound(listener, address) => {
            // It runs until the server ends, even if later settings do not name it: it may have sessions.
            let mut running = server.sandbox.lock();
            if !server.ports.is_stopped() {
                *running = Some(sandbox_service::start(listener, address));
            }
            Some(address)
        }
    };
    server.report_certificate(&acceptor.certificate(), &settings.ingress);
    server.trunks.set_identity(near_identity);
    server.pool.reconfigure(settings.community.clone(), sandbox_address);
    server.mux.reconfigure(settings.mux.clone());
    server.ingress.reconfigure(settings.ingress.clone(), &acceptor);
    let mut closing = server.ports.replace(listeners);
    {
        let mut running = server.admin.lock();
        match admin {
            ServicePlan::Kept => (),
            ServicePlan::Off => closing.extend(running.take().map(RunningAdmin::close)),
            ServicePlan::Bound(..) if server.ports.is_stopped() => (),
            ServicePlan::Bound(listener, address) => {
                let before = running.take();
                let now = RunningAdmin::start(listener, address, server, before.as_ref());
                closing.extend(before.map(|before| before.close_for(&now)));
                *running = Some(now);
            }
        }
    }
    server.log.send_replace(settings.log);
    server.settings.store(Arc::new(settings));
    let number = {
        let mut revision = server.revision.lock();
        *revision = ConfigurationRevision { number: revision.number + 1, loaded_at: unix_time(), last_error: None };
        revision.number
    };
    for closing in closing {
        // When the task has ended, its socket is closed.
        let _ended = closing.await;
    }
    number
}
