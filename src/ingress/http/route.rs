//! What a request is for. Both paths ask here, so this is the one place that tells the tunnel's requests from others.
//!
//! | path | POST | GET, HEAD | another method |
//! |---|---|---|---|
//! | `.../CommunityCBR/CC.<kind>.<session>/` | the tunnel | 200: the tunnel is ready | 405 |
//! | `.../CommunityCBR` | 405 | 200: the tunnel is ready | 405 |
//! | `.../CommunityCBR/...`, of another form | 404 | 404 | 404 |
//! | any other, `http_backend.url` is set | the web server | the web server | the web server |
//! | any other | 404 | 404 | 404 |
//!
//! One 404 is not decided here: the tunnel's, for a session that does not exist.

use hyper::{StatusCode, Uri};

use super::response::PortResponse;
use crate::wire::tunnel::{
    envelope::{self, Address, TunnelKind},
    name::UrlName,
};

/// What a request is for, and so where it goes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Destination<'url> {
    /// The session of this name, or a new one when the name is empty.
    Tunnel(TunnelKind, UrlName),
    /// The web server at this URL.
    WebServer(&'url Uri),
    /// This port answers by itself.
    Page(PortPage),
}

/// A page of this port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PortPage {
    /// 200: a person, or a health check, asks whether the tunnel is there.
    TunnelReady,
    /// 405: a path of the tunnel, with a method that it does not take.
    TunnelTakesPost,
    /// 404: the path is meant for the tunnel, but is not of its form.
    NoSuchTunnel,
    /// 404: the path is not the tunnel's, and there is no web server.
    NoWebServer,
}

/// Decides what a request is for. `web_server` is `http_backend.url`.
pub(super) fn route<'url>(method: &str, path: &str, web_server: Option<&'url Uri>) -> Destination<'url> {
    match (envelope::address(path), method) {
        (Address::Tunnel(kind, session), "POST") => Destination::Tunnel(kind, session),
        (Address::Tunnel(..) | Address::Probe, "GET" | "HEAD") => Destination::Page(PortPage::TunnelReady),
        (Address::Tunnel(..) | Address::Probe, _) => Destination::Page(PortPage::TunnelTakesPost),
        (Address::Malformed, _) => Destination::Page(PortPage::NoSuchTunnel),
        (Address::Other, _) => web_server.map_or(Destination::Page(PortPage::NoWebServer), Destination::WebServer),
    }
}

impl From<PortPage> for PortResponse {
    fn from(page: PortPage) -> Self {
        match page {
            PortPage::TunnelReady => Self::page(StatusCode::OK, "Sametime Community tunnel: ready for clients.\n"),
            PortPage::TunnelTakesPost => Self::tunnel_method_not_allowed(),
            PortPage::NoSuchTunnel => Self::page(StatusCode::NOT_FOUND, "Not found.\n"),
            PortPage::NoWebServer => {
                Self::page(StatusCode::NOT_FOUND, "Not found. This port is for Sametime clients.\n")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_and_a_method_decide() {
        let (url, web) = (Uri::from_static("http://web.example"), Destination::WebServer);
        let tunnel = |name: &str| Destination::Tunnel(TunnelKind::Hybrid, UrlName::parse(name).expect("short"));
        let page = Destination::Page;
        for (method, path, expected, without_web_server) in [
            ("POST", "/CommunityCBR/CC.39.abc/", tunnel("abc"), tunnel("abc")),
            ("POST", "//a/communitycbr/CC.39./", tunnel(""), tunnel("")),
            ("GET", "/CommunityCBR/CC.39.abc/", page(PortPage::TunnelReady), page(PortPage::TunnelReady)),
            ("PUT", "/CommunityCBR/CC.39.abc/", page(PortPage::TunnelTakesPost), page(PortPage::TunnelTakesPost)),
            ("post", "/CommunityCBR/CC.39.abc/", page(PortPage::TunnelTakesPost), page(PortPage::TunnelTakesPost)),
            ("HEAD", "/CommunityCBR", page(PortPage::TunnelReady), page(PortPage::TunnelReady)),
            ("POST", "/CommunityCBR", page(PortPage::TunnelTakesPost), page(PortPage::TunnelTakesPost)),
            ("POST", "/CommunityCBR/CC.40.abc/", page(PortPage::NoSuchTunnel), page(PortPage::NoSuchTunnel)),
            ("GET", "/CommunityCBR/CC.39.abc/d", page(PortPage::NoSuchTunnel), page(PortPage::NoSuchTunnel)),
            ("GET", "/stlinks", web(&url), page(PortPage::NoWebServer)),
            ("POST", "/", web(&url), page(PortPage::NoWebServer)),
            ("OPTIONS", "*", web(&url), page(PortPage::NoWebServer)),
        ] {
            assert_eq!(route(method, path, Some(&url)), expected, "{method} {path}");
            assert_eq!(route(method, path, None), without_web_server, "{method} {path}");
        }
    }
}
