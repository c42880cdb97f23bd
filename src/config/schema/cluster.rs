//! `[cluster]`.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf};

use serde::Deserialize;

use crate::{
    cluster::{ClusterSettings, NodeAddress},
    config::{legal, reader::KeyReader, section_reader::SectionReader},
    ingress::ListenerSettings,
    net::address::overlap,
};

/// What stands for the name of a node in a template.
const NODE: &str = "{node}";
/// The port of a URL that has none.
const HTTP: u16 = 80;

/// How nodes are reached, as the file has it.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged, expecting = "neither a string nor a table of strings")]
enum PeerValue {
    /// A URL with [`NODE`] in it, or nothing.
    Template(String),
    /// A URL for each name.
    Table(BTreeMap<String, String>),
}

/// How nodes are reached, checked.
#[derive(Debug, Clone)]
enum Peers {
    None,
    Template(String),
    Table(Vec<NodeAddress>),
}

/// Reads the section. `None`: this multiplexer is alone. `cluster.listen` may be neither one of `listeners` nor `admin`.
pub(super) fn read(
    reader: &mut KeyReader<'_>,
    listeners: &[ListenerSettings],
    admin: Option<SocketAddr>,
) -> Option<ClusterSettings> {
    let mut section = SectionReader::new(reader, "cluster");
    let legal = "the name of this node; \"\" for the name of this machine";
    let node = section.key("node", String::new(), legal, |name: String| {
        if name.is_empty() { Ok(None) } else { legal::node(&name).map(Some) }
    });
    let legal = "a URL such as \"http://{node}.mux:9534\", a table of names and URLs, or \"\" for a multiplexer alone";
    let peers = section.key("peer", PeerValue::Template(String::new()), legal, peers);
    let legal = "a list of the names of all nodes, each once; [] where cluster.peer is a table";
    let names = section.key("nodes", vec![], legal, names);
    let legal = "\"address:port\", or \"\" for a multiplexer alone";
    let listen = section.key("listen", String::new(), legal, legal::listen);
    let secret_file = section.text("secret_file", "", "a file with a secret; \"\" for a multiplexer alone");
    let nodes = match peers {
        Peers::None => {
            let others =
                [("nodes", !names.is_empty()), ("listen", listen.is_some()), ("secret_file", !secret_file.is_empty())];
            for (name, _) in others.iter().filter(|(_, is_set)| *is_set) {
                section.conflict("peer", &format!("cluster.{name} is set, but not how other nodes are reached"));
            }
            return None;
        }
        Peers::Table(nodes) => {
            if !names.is_empty() {
                section.conflict("nodes", "the table cluster.peer has the names of all nodes");
            }
            nodes
        }
        Peers::Template(template) => {
            let addresses = names.iter().map(|name| {
                let address = address(&template.replace(NODE, name))?;
                Ok(NodeAddress { name: name.clone(), address })
            });
            addresses.collect::<Result<Vec<_>, String>>().unwrap_or_else(|what| {
                section.conflict("peer", &what);
                Vec::new()
            })
        }
    };
    let own = node.or_else(|| legal::node(rustix::system::uname().nodename().to_str().unwrap_or_default()).ok());
    let own = own.unwrap_or_default();
    if !nodes.iter().any(|node| node.name == own) {
        let what = format!("{own:?} is not among the nodes: name it in cluster.nodes, or in the table cluster.peer");
        section.conflict("node", &what);
    }
    if secret_file.is_empty() {
        section.conflict("secret_file", "cluster.peer is set: there must be a file");
    }
    let Some(listen) = listen else {
        section.conflict("listen", "cluster.peer is set: other nodes have to reach this one");
        return None;
    };
    let taken = listeners.iter().find(|listener| {
        listen.port() == listener.port && legal::may_overlap(&listen.ip().to_string(), &listener.host)
    });
    if let Some(taken) = taken {
        section.conflict("listen", &format!("port {} stands in [{}], too", taken.port, taken.section));
    } else if admin.is_some_and(|admin| overlap(admin, listen)) {
        section.conflict("listen", "it is admin.listen, too");
    }
    Some(ClusterSettings { node: own, nodes, listen, secret_file: PathBuf::from(secret_file) })
}

fn peers(value: PeerValue) -> Result<Peers, String> {
    match value {
        PeerValue::Template(text) if text.is_empty() => Ok(Peers::None),
        PeerValue::Template(text) if !text.contains(NODE) => Err(format!("{text:?} has no {NODE}")),
        // A name of one letter stands for any name.
        PeerValue::Template(text) => address(&text.replace(NODE, "a")).map(|_| Peers::Template(text)),
        PeerValue::Table(table) if table.is_empty() => Err("there is no node".to_owned()),
        PeerValue::Table(table) => {
            let mut nodes: Vec<NodeAddress> = Vec::new();
            for (name, url) in table {
                let name = legal::node(&name)?;
                if nodes.iter().any(|node| node.name == name) {
                    return Err(format!("{name:?} stands there twice"));
                }
                nodes.push(NodeAddress { name, address: address(&url)? });
            }
            Ok(Peers::Table(nodes))
        }
    }
}

fn names(texts: Vec<String>) -> Result<Vec<String>, String> {
    let mut names = Vec::new();
    for text in texts {
        let name = legal::node(&text)?;
        if names.contains(&name) {
            return Err(format!("{text:?} stands there twice"));
        }
        names.push(name);
    }
    Ok(names)
}

/// `host:port` of a URL.
fn address(url: &str) -> Result<String, String> {
    let uri = legal::backend(url.to_owned())?.ok_or("\"\" is no URL")?;
    let host = uri.host().unwrap_or_default();
    Ok(format!("{host}:{}", uri.port_u16().unwrap_or(HTTP)))
}
