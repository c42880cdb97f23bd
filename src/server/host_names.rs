//! What the names in `host_name` stand for.
//!
//! ```text
//!          found                    fails                       fails
//!  ─────────────▶ addresses known ◀───────▶ last addresses stay    ─────▶ no address known: nothing is bound
//!                                   found
//! ```
//!
//! A name is looked up at the start and at each reload. One whose look-up failed is looked up again until it succeeds.

use std::{collections::BTreeMap, net::SocketAddr};

use tokio::task::JoinSet;

use crate::net::resolve::{HostNameError, literal, look_up};

/// What a look-up of each of some names found.
pub(super) type Found = Vec<(String, Result<Vec<SocketAddr>, HostNameError>)>;

/// The addresses of names, as far as they are known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct HostNames(BTreeMap<String, HostName>);

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct HostName {
    /// By the last look-up that succeeded, with port 0; empty if none did.
    addresses: Vec<SocketAddr>,
    /// Why the last look-up failed; none if it succeeded.
    error: Option<HostNameError>,
}

/// The addresses of a `host_name`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HostAddresses<'a> {
    /// With port 0. Empty if none is known.
    pub(super) addresses: Vec<SocketAddr>,
    /// Why the last look-up failed; none if it succeeded, or if the host is an address.
    pub(super) error: Option<&'a HostNameError>,
}

impl HostNames {
    /// The addresses of `host`, which is an address or a name that was looked up.
    pub(super) fn addresses(&self, host: &str) -> HostAddresses<'_> {
        if let Some(address) = literal(host) {
            return HostAddresses { addresses: vec![SocketAddr::new(address, 0)], error: None };
        }
        match self.0.get(host) {
            Some(name) => HostAddresses { addresses: name.addresses.clone(), error: name.error.as_ref() },
            None => HostAddresses { addresses: Vec::new(), error: Some(&HostNameError::NoAddress) },
        }
    }

    /// These names with what was found. A look-up that failed leaves a name's addresses as they are.
    pub(super) fn updated(mut self, found: Found) -> Self {
        for (host, found) in found {
            let name = self.0.entry(host).or_default();
            match found {
                Ok(addresses) => *name = HostName { addresses, error: None },
                Err(error) => name.error = Some(error),
            }
        }
        self
    }

    /// These names without those that are not in `hosts`.
    pub(super) fn only<'a>(mut self, hosts: impl Iterator<Item = &'a str> + Clone) -> Self {
        self.0.retain(|name, _| hosts.clone().any(|host| host == name));
        self
    }

    /// The names whose last look-up failed.
    pub(super) fn failed(&self) -> Vec<String> {
        self.0.iter().filter(|(_, name)| name.error.is_some()).map(|(host, _)| host.clone()).collect()
    }
}

/// Looks up those of `hosts` that are names, each once, and all at the same time.
pub(super) async fn look_up_all(hosts: impl Iterator<Item = String>) -> Found {
    let mut names: Vec<String> = hosts.filter(|host| literal(host).is_none()).collect();
    names.sort();
    names.dedup();
    let mut look_ups = JoinSet::new();
    for name in names {
        look_ups.spawn(async move {
            let found = look_up(&name).await;
            (name, found)
        });
    }
    look_ups.join_all().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_fails_keeps_its_addresses_until_it_is_found_again() {
        let ip = |last: u8| SocketAddr::from(([127, 0, 0, last], 0));
        let found = |found| vec![("chat".to_owned(), found)];
        let failure = HostNameError::TimedOut;
        let shown = |names: &HostNames| {
            let HostAddresses { addresses, error } = names.addresses("chat");
            (addresses, error.cloned(), names.failed().len())
        };
        let never = HostNames::default().updated(found(Err(failure.clone())));
        assert_eq!(shown(&never), (vec![], Some(failure.clone()), 1));
        let known = never.updated(found(Ok(vec![ip(2)])));
        assert_eq!(shown(&known), (vec![ip(2)], None, 0));
        let failed = known.updated(found(Err(failure.clone())));
        assert_eq!(shown(&failed), (vec![ip(2)], Some(failure), 1));
        let moved = failed.updated(found(Ok(vec![ip(3), ip(4)])));
        assert_eq!(shown(&moved), (vec![ip(3), ip(4)], None, 0));
        assert_eq!(moved.addresses("127.0.0.9"), HostAddresses { addresses: vec![ip(9)], error: None });
        assert_eq!(moved.clone().only(["chat", ""].into_iter()), moved);
        assert_eq!(moved.only([""].into_iter()), HostNames::default(), "what the file no longer has is forgotten");
    }

    #[tokio::test]
    async fn each_name_is_looked_up_once_and_no_address_is() {
        let hosts = ["localhost", "", "127.0.0.1", "localhost"].map(str::to_owned);
        let found = look_up_all(hosts.into_iter()).await;
        assert_eq!(found.iter().map(|(name, _)| &**name).collect::<Vec<_>>(), ["localhost"]);
    }
}
