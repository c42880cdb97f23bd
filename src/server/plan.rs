//! What is to become of each listener: it is bound, kept, or down. Planning changes nothing that is there.
//!
//! Listeners are told apart by their addresses. A socket that this process has already is kept, whatever section its
//! port is in now, so that a reload which moves a port closes nothing.

use std::net::SocketAddr;

use super::{
    ServerError,
    host_names::{HostAddresses, HostNames},
    listener_error::ListenerError,
    own_sockets::OwnSockets,
};
use crate::{
    ingress::{self, ListenerSettings},
    net::{
        Section,
        address::overlap,
        listen::{BoundSocket, ListeningSockets},
        resolve::HostNameError,
    },
    telemetry::{
        Telemetry,
        outcome::{ListenerFailure, ReloadRefusal},
    },
};

/// A listener of the settings at one address. A host name with several addresses makes several requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ListenerRequest {
    pub(super) settings: ListenerSettings,
    /// By the settings; none if no address of the name is known. Port 0, which only tests use, is still 0 here.
    pub(super) address: Option<SocketAddr>,
}

impl ListenerRequest {
    /// Whether both ask for the same socket. With port 0 each listener of the settings has a port of its own.
    pub(super) fn is_same_socket(&self, other: &Self) -> bool {
        match (self.address, other.address) {
            (Some(a), Some(b)) => a == b && (a.port() != 0 || self.settings == other.settings),
            _ => false,
        }
    }
}

/// What there is before the plan.
#[derive(Default)]
pub(super) struct PresentListeners {
    /// The requests of the sockets that clients are accepted on.
    pub(super) requests: Vec<ListenerRequest>,
    /// These sockets, and those of the admin endpoint.
    pub(super) sockets: OwnSockets,
}

/// A listener that is to be there.
pub(super) struct PlannedListener<S> {
    pub(super) request: ListenerRequest,
    pub(super) source: ListenerSource<S>,
    /// For the admin: why the addresses are not those of now, if the name's last look-up failed.
    pub(super) stale: Option<String>,
}

/// Where a planned listener comes from.
pub(super) enum ListenerSource<S> {
    /// There is a socket for it already.
    Kept,
    /// This socket was bound for it.
    New(S),
    /// It can't be bound.
    Down(ListenerError),
}

/// Listeners that are to be there, and the names that they were planned by. Its sockets are bound first, and listen when
/// nothing can fail any more.
pub(super) struct ListenerPlan<S> {
    pub(super) listeners: Vec<PlannedListener<S>>,
    pub(super) names: HostNames,
    require_all: bool,
}

impl ListenerPlan<BoundSocket> {
    /// Binds what `settings` ask for and `present` does not have. Each failure is counted. `admin` is
    /// where the admin endpoint is to listen.
    pub(super) async fn new(
        settings: &ingress::IngressSettings,
        admin: Option<SocketAddr>,
        names: HostNames,
        present: &PresentListeners,
        telemetry: &Telemetry,
    ) -> Self {
        let mut planned: Vec<PlannedListener<BoundSocket>> = Vec::new();
        for listener in &settings.listeners {
            let HostAddresses { addresses, error } = names.addresses(&listener.host);
            if error.is_some() {
                telemetry.listeners.failures.count(ListenerFailure::Unresolved);
            }
            if let Some(error) = error
                && addresses.is_empty()
            {
                let source = ListenerSource::Down(ListenerError::unresolved(listener, error));
                let request = ListenerRequest { settings: listener.clone(), address: None };
                planned.push(PlannedListener { request, source, stale: None });
            }
            for mut address in addresses {
                address.set_port(listener.port);
                let request = ListenerRequest { settings: listener.clone(), address: Some(address) };
                let is_in_the_way = |other: Option<SocketAddr>| {
                    other.is_some_and(|other| address.port() != 0 && overlap(other, address))
                };
                let taken = planned.iter().find(|other| is_in_the_way(other.request.address));
                let source = if let Some(taken) = taken {
                    ListenerSource::Down(ListenerError::overlap(address, taken.request.settings.section.name()))
                } else if is_in_the_way(admin) {
                    ListenerSource::Down(ListenerError::overlap(address, "admin"))
                } else if present.requests.iter().any(|present| present.is_same_socket(&request)) {
                    ListenerSource::Kept
                } else {
                    let bound = present.sockets.bind(address, settings.share_ports).await;
                    bound.map_or_else(ListenerSource::Down, ListenerSource::New)
                };
                planned.push(PlannedListener { request, source, stale: error.map(|error| stale(listener, error)) });
            }
        }
        for listener in &planned {
            if let ListenerSource::Down(error) = &listener.source
                && error.reason != ListenerFailure::Unresolved
            {
                telemetry.listeners.failures.count(error.reason);
            }
        }
        let names = names.only(settings.listeners.iter().map(|listener| &*listener.host));
        Self { listeners: planned, names, require_all: settings.require_all }
    }

    /// Lets what was bound listen: from now on clients can connect. It fails where another process was faster.
    pub(super) fn listen(self, telemetry: &Telemetry) -> ListenerPlan<ListeningSockets> {
        let listen = |PlannedListener { request, source, stale }: PlannedListener<BoundSocket>| {
            let source = match source {
                ListenerSource::Kept => ListenerSource::Kept,
                ListenerSource::Down(error) => ListenerSource::Down(error),
                ListenerSource::New(bound) => bound.listen().map_or_else(
                    |error| {
                        let error = ListenerError::from_listen(&error);
                        telemetry.listeners.failures.count(error.reason);
                        ListenerSource::Down(error)
                    },
                    ListenerSource::New,
                ),
            };
            PlannedListener { request, source, stale }
        };
        let listeners = self.listeners.into_iter().map(listen).collect();
        ListenerPlan { listeners, names: self.names, require_all: self.require_all }
    }
}

impl<S> ListenerPlan<S> {
    /// Checks that no listener is down that must not be.
    ///
    /// # Errors
    /// A Community port is down; with `listeners.require_all`, any port. The error names all of them.
    pub(super) fn check(&self) -> Result<(), ServerError> {
        let errors = self.listeners.iter().filter_map(|listener| {
            let section = listener.request.settings.section;
            let is_required = self.require_all || section == Section::ClientConnections;
            match &listener.source {
                // It names its section itself.
                ListenerSource::Down(error) if is_required && listener.request.address.is_none() => {
                    Some(error.what.clone())
                }
                ListenerSource::Down(error) if is_required => Some(format!("[{section}] ports: {error}")),
                _ => None,
            }
        });
        let errors: Vec<String> = errors.collect();
        if errors.is_empty() { Ok(()) } else { Err(ServerError::new(ReloadRefusal::Listener, errors.join("\n"))) }
    }
}

fn stale(listener: &ListenerSettings, error: &HostNameError) -> String {
    format!("host_name {:?} can't be looked up, its last addresses stay in force: {error}", listener.host)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    /// Settings of which each section has one port number, and the name "chat".
    fn settings(toml: &str) -> ingress::IngressSettings {
        let toml = &format!("{toml}[community]\nservers = [\"sandbox\"]\n");
        config::parse(toml, std::path::Path::new("st.toml"), std::iter::empty()).expect("settings").ingress
    }

    fn names(found: Result<Vec<SocketAddr>, HostNameError>) -> HostNames {
        HostNames::default().updated(vec![("chat".to_owned(), found)])
    }

    #[tokio::test]
    async fn nothing_is_bound_for_a_name_without_an_address() {
        let telemetry = Telemetry::new("0");
        let chat = "[client_connections]\nhost_name = \"chat\"\nports = [1]\n[http_tunneled_client_connections]\nports = []\n[https_tunneled_client_connections]\nports = []\n";
        let plan = ListenerPlan::new(
            &settings(chat),
            None,
            names(Err(HostNameError::TimedOut)),
            &PresentListeners::default(),
            &telemetry,
        )
        .await;
        assert_eq!(plan.listeners.len(), 1);
        assert_eq!(plan.listeners[0].request.address, None);
        assert!(
            matches!(&plan.listeners[0].source, ListenerSource::Down(e) if e.reason == ListenerFailure::Unresolved)
        );
        let refused = plan.check().expect_err("a Community port").what;
        assert!(refused.starts_with("[client_connections] host_name \"chat\": no answer"), "{refused}");
        assert_eq!(plan.names.failed(), ["chat"]);
    }

    #[tokio::test]
    async fn one_address_in_two_sections_is_an_error_of_the_second() {
        let telemetry = Telemetry::new("0");
        let own = crate::net::listen::listen("127.0.0.1:0".parse().expect("address"), false).expect("any port");
        let address = own.local_addr().expect("bound");
        let port = address.port();
        let two = format!(
            "[client_connections]\nhost_name = \"chat\"\nports = [{port}]\n[http_tunneled_client_connections]\nhost_name = \"127.0.0.1\"\nports = [{port}]\n[https_tunneled_client_connections]\nports = []\n"
        );
        let settings = settings(&two);
        let request = ListenerRequest { settings: settings.listeners[1].clone(), address: Some(address) };
        let present = PresentListeners { requests: vec![request], sockets: OwnSockets::default() };
        let plan = ListenerPlan::new(&settings, None, names(Ok(vec![address])), &present, &telemetry).await;
        let [first, second] = &plan.listeners[..] else { panic!("two listeners") };
        assert!(matches!(first.source, ListenerSource::Kept), "the socket goes from one section to the other");
        assert!(matches!(&second.source, ListenerSource::Down(e) if e.reason == ListenerFailure::Overlap));
        assert!(plan.check().is_ok(), "no Community port is down");

        let names = names(Ok(vec![address]));
        let plan = ListenerPlan::new(&settings, Some(address), names, &PresentListeners::default(), &telemetry).await;
        let refused = plan.check().expect_err("a Community port").what;
        assert_eq!(refused, format!("[client_connections] ports: port {port} of 127.0.0.1 is in [admin], too"));
    }
}
