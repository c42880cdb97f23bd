//! What a request is for. Both paths ask here, so this is the one place that tells the tunnel's requests from others.
//!
//! | path | POST | GET, HEAD, OPTIONS | another method |
//! |---|---|---|---|
//! | `.../CommunityCBR/CC.<kind>.<session>/` | the tunnel | 200: the tunnel is ready, or 503 | 405 |
//! | `.../CommunityCBR/` | the streaming tunnel | the same; a streaming client's GET: its stream | 405 |
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
    /// A new session of the streaming tunnel.
    OpenStream,
    /// The session of the streaming tunnel that the body names.
    Upload,
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
    /// 200: the same with the method OPTIONS, which asks for the methods.
    TunnelMethods,
    /// 503 in the place of both: clients can't be served at present.
    TunnelNotReady,
    /// 405: a path of the tunnel, with a method that it does not take.
    TunnelTakesPost,
    /// 404: the path is meant for the tunnel, but is not of its form.
    NoSuchTunnel,
    /// 404: the path is not the tunnel's, and there is no web server.
    NoWebServer,
}

/// The headers of a GET request by which a streaming client is told from a person's browser and from a health check,
/// which ask for the same path.
///
/// A streaming client sends `Content-Type: Application/Octet-Stream` and `Pragma: No-Cache`, and neither User-Agent nor
/// Accept. One content type is enough, since nobody else sends one with a GET. Without it, as behind a proxy that
/// removes it, all the other signs are needed.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct StreamSigns {
    is_octet_stream: bool,
    is_no_cache: bool,
    is_of_browser: bool,
}

impl StreamSigns {
    /// The signs in `headers`.
    pub(super) fn of<'a>(headers: impl Iterator<Item = (&'a str, &'a [u8])>) -> Self {
        let mut signs = Self::default();
        for (name, value) in headers {
            let is = |other: &str| name.eq_ignore_ascii_case(other);
            match name.len() {
                12 if is("content-type") => {
                    signs.is_octet_stream |= value.trim_ascii().eq_ignore_ascii_case(b"application/octet-stream");
                }
                6 if is("pragma") => signs.is_no_cache |= value.trim_ascii().eq_ignore_ascii_case(b"no-cache"),
                10 if is("user-agent") => signs.is_of_browser = true,
                6 if is("accept") => signs.is_of_browser = true,
                _ => (),
            }
        }
        signs
    }

    fn are_of_client(self) -> bool {
        self.is_octet_stream || (self.is_no_cache && !self.is_of_browser)
    }
}

/// Decides what a request is for. `signs` matter only for GET, and `web_server` is `http_backend.url`.
pub(super) fn route<'url>(
    method: &str,
    path: &str,
    signs: StreamSigns,
    web_server: Option<&'url Uri>,
) -> Destination<'url> {
    match (envelope::address(path), method) {
        (Address::Probe, "GET") if signs.are_of_client() => Destination::OpenStream,
        (Address::Probe, "POST") => Destination::Upload,
        (Address::Tunnel(kind, session), "POST") => Destination::Tunnel(kind, session),
        (Address::Tunnel(..) | Address::Probe, "GET" | "HEAD") => Destination::Page(PortPage::TunnelReady),
        (Address::Tunnel(..) | Address::Probe, "OPTIONS") => Destination::Page(PortPage::TunnelMethods),
        (Address::Tunnel(..) | Address::Probe, _) => Destination::Page(PortPage::TunnelTakesPost),
        (Address::Malformed, _) => Destination::Page(PortPage::NoSuchTunnel),
        (Address::Other, _) => web_server.map_or(Destination::Page(PortPage::NoWebServer), Destination::WebServer),
    }
}

impl PortPage {
    /// The page at a moment at which clients can be served, or can't.
    pub(super) fn at(self, is_ready: impl Fn() -> bool) -> Self {
        match self {
            Self::TunnelReady | Self::TunnelMethods if !is_ready() => Self::TunnelNotReady,
            page => page,
        }
    }
}

impl From<PortPage> for PortResponse {
    fn from(page: PortPage) -> Self {
        match page {
            PortPage::TunnelReady => Self::page(StatusCode::OK, "Sametime Community tunnel: ready for clients.\n"),
            PortPage::TunnelMethods => Self::tunnel_methods(StatusCode::OK, ""),
            PortPage::TunnelNotReady => {
                Self::page(StatusCode::SERVICE_UNAVAILABLE, "Sametime Community tunnel: clients can't be served now.\n")
            }
            PortPage::TunnelTakesPost => {
                Self::tunnel_methods(StatusCode::METHOD_NOT_ALLOWED, "The tunnel takes POST.\n")
            }
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
        let (page, signs) = (Destination::Page, StreamSigns::default());
        for (method, path, expected, without_web_server) in [
            ("POST", "/CommunityCBR/CC.39.abc/", tunnel("abc"), tunnel("abc")),
            ("POST", "//a/communitycbr/CC.39./", tunnel(""), tunnel("")),
            ("GET", "/CommunityCBR/CC.39.abc/", page(PortPage::TunnelReady), page(PortPage::TunnelReady)),
            ("PUT", "/CommunityCBR/CC.39.abc/", page(PortPage::TunnelTakesPost), page(PortPage::TunnelTakesPost)),
            ("post", "/CommunityCBR/CC.39.abc/", page(PortPage::TunnelTakesPost), page(PortPage::TunnelTakesPost)),
            ("HEAD", "/CommunityCBR", page(PortPage::TunnelReady), page(PortPage::TunnelReady)),
            ("OPTIONS", "/CommunityCBR/", page(PortPage::TunnelMethods), page(PortPage::TunnelMethods)),
            ("OPTIONS", "/CommunityCBR/CC.39./", page(PortPage::TunnelMethods), page(PortPage::TunnelMethods)),
            ("OPTIONS", "/", web(&url), page(PortPage::NoWebServer)),
            ("POST", "/CommunityCBR", Destination::Upload, Destination::Upload),
            ("PUT", "/CommunityCBR", page(PortPage::TunnelTakesPost), page(PortPage::TunnelTakesPost)),
            ("POST", "/CommunityCBR/CC.40.abc/", page(PortPage::NoSuchTunnel), page(PortPage::NoSuchTunnel)),
            ("GET", "/CommunityCBR/CC.39.abc/d", page(PortPage::NoSuchTunnel), page(PortPage::NoSuchTunnel)),
            ("GET", "/stlinks", web(&url), page(PortPage::NoWebServer)),
            ("POST", "/", web(&url), page(PortPage::NoWebServer)),
            ("OPTIONS", "*", web(&url), page(PortPage::NoWebServer)),
        ] {
            assert_eq!(route(method, path, signs, Some(&url)), expected, "{method} {path}");
            assert_eq!(route(method, path, signs, None), without_web_server, "{method} {path}");
        }
    }

    #[test]
    fn a_streaming_client_is_told_from_a_browser() {
        let opens = |method: &str, path: &str, headers: &[(&str, &str)]| {
            let signs = StreamSigns::of(headers.iter().map(|(name, value)| (*name, value.as_bytes())));
            route(method, path, signs, None) == Destination::OpenStream
        };
        let (octets, pragma) = (("Content-Type", "Application/Octet-Stream"), ("Pragma", "No-Cache"));
        let (agent, accept) = (("User-Agent", "Mozilla/5.0"), ("Accept", "text/html"));
        // As recorded; with what proxies add; and from a proxy that changes the case and removes the type.
        assert!(opens("GET", "/communityCBR/", &[pragma, ("Host", "x"), octets]));
        assert!(opens("GET", "//st01/communityCBR/", &[octets, agent, ("Via", "1.1 squid")]));
        assert!(opens("GET", "/COMMUNITYCBR", &[("pragma", "no-cache"), ("Via", "1.0 tinyproxy")]));
        // A browser that reloads the page, health checks, and another kind's path.
        assert!(!opens("GET", "/communityCBR/", &[pragma, agent, accept]));
        assert!(!opens("GET", "/communityCBR/", &[]));
        assert!(!opens("GET", "/CommunityCBR", &[agent]));
        assert!(!opens("GET", "/CommunityCBR", &[accept, pragma]));
        assert!(!opens("HEAD", "/communityCBR/", &[pragma, octets]));
        assert!(!opens("GET", "/communityCBR/CC.35./", &[pragma, octets]));
        assert!(!opens("GET", "/", &[pragma, octets]));
    }

    #[test]
    fn only_the_pages_that_say_that_the_tunnel_is_ready_depend_on_it() {
        for page in [PortPage::TunnelReady, PortPage::TunnelMethods] {
            assert_eq!((page.at(|| true), page.at(|| false)), (page, PortPage::TunnelNotReady));
        }
        for page in [PortPage::TunnelTakesPost, PortPage::NoSuchTunnel, PortPage::NoWebServer] {
            assert_eq!(page.at(|| panic!("it is not asked")), page);
        }
    }
}
