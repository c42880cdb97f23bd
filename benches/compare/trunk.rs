//! What the near end of a trunk costs: memory of idle clients, and CPU time of messages.

use super::{
    load::{self, Window},
    proxies::{Contender, Folder, Process, Running, Workload, start},
};

/// As many clients as one process can serve whose link needs no descriptor.
const CLIENTS: usize = 19_000;

/// The memory of an idle client at both ends, over two connections.
pub async fn idle(folder: &Folder) -> Vec<(&'static str, f64)> {
    let (near, far) = Running::trunk(folder);
    // The first clients make every thread allocate what it needs once.
    drop(load::idle(8, near.address, None).await);
    tokio::time::sleep(super::SETTLE).await;
    let before = (near.memory(), far.memory());
    let clients = load::idle(CLIENTS, near.address, None).await;
    tokio::time::sleep(super::SETTLE).await;
    let of_one = |now: f64, before: f64| (now - before) / CLIENTS as f64;
    let figures = vec![("trunk near", of_one(near.memory(), before.0)), ("trunk far", of_one(far.memory(), before.1))];
    drop(clients);
    figures
}

/// The CPU time of messages at the near end, or at another contender without a trunk.
pub async fn messages(contender: Contender, clients: usize, folder: &Folder, window: Window) -> load::Busy {
    let (running, far): (Running, Option<Process>) = if contender == Contender::Mux {
        let (near, far) = Running::trunk(folder);
        (near, Some(far))
    } else {
        (start(contender, Workload::Raw, folder), None)
    };
    let busy = load::messages(&running, clients, None, window).await;
    drop(far);
    busy
}
