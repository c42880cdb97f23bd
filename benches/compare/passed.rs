//! What a request costs that one node of a cluster passes to another one, beside a request that reaches its own node.

use std::net::SocketAddr;

use super::{
    load::{Busy, Window},
    proxies::{Cluster, Folder, Process},
    streaming,
    tunnel::{self, Kind},
};

/// Clients at the same time, of each kind.
const CLIENTS: usize = 64;

/// Sessions of the first node get their requests from the first node, and then from the second one.
pub async fn passed(folder: &Folder, window: Window) -> Vec<(&'static str, f64)> {
    let (_community, community) = Process::role("community");
    let nodes = Cluster::nodes(folder, community);
    let [first, second]: [SocketAddr; 2] = nodes.addresses.clone().try_into().unwrap();
    let polls = async |by| {
        let mut sessions = tunnel::sessions(CLIENTS, Some(Kind::Polling), first).await;
        for session in &mut sessions {
            session.connect_to(by).await.expect("a node");
        }
        tunnel::poll(sessions, || nodes.cpu(), window).await
    };
    let messages = async |by| {
        let mut clients = streaming::clients(CLIENTS, first).await;
        clients.iter_mut().for_each(|client| client.post_to(by));
        streaming::talk(clients, || nodes.cpu(), window).await
    };
    let (own_poll, poll) = (polls(first).await, polls(second).await);
    let (own_post, post) = (messages(first).await, messages(second).await);
    let later = |busy: &Busy, own: &Busy| busy.percentile(50.0) - own.percentile(50.0);
    vec![
        ("passed poll cpu", poll.cpu * 1e6),
        ("passed poll ratio", poll.cpu / own_poll.cpu),
        ("passed poll later", later(&poll, &own_poll)),
        ("passed post cpu", post.cpu * 1e6),
        ("passed post ratio", post.cpu / own_post.cpu),
        ("passed post later", later(&post, &own_post)),
    ]
}
