//! Tries again what failed: listeners that are down, and names whose look-up failed.

use std::{sync::Weak, time::Duration};

use super::{
    ServerContext,
    host_names::{Found, look_up_all},
    plan::ListenerPlan,
};

/// How often.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// Tries again until the server ends or is drained. The server may end during a look-up.
pub(super) async fn retry(server: Weak<ServerContext>) {
    loop {
        tokio::time::sleep(RETRY_INTERVAL).await;
        let failed = match server.upgrade() {
            None => return,
            Some(server) if server.mux.is_draining() || !server.ports.is_incomplete() => continue,
            Some(server) => server.ports.names().failed(),
        };
        let found = look_up_all(failed.into_iter()).await;
        let Some(server) = server.upgrade() else { return };
        plan_again(&server, found).await;
    }
}

/// Plans the settings in force anew: what is up is kept.
async fn plan_again(server: &ServerContext, found: Found) {
    let _one_at_a_time = server.reloading.lock().await;
    let settings = server.settings.load_full();
    let names = server.ports.names().updated(found);
    let admin = settings.admin.listen;
    let plan = ListenerPlan::new(&settings.ingress, admin, names, &server.present(), &server.telemetry).await;
    if server.mux.is_draining() {
        return;
    }
    for closing in server.ports.replace(plan.listen(&server.telemetry)) {
        let _ended = closing.await;
    }
}
