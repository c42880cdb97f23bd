//! The rows of the matrix: each has a proxy, its configuration, and the route of clients through it.

use std::{fs, net::SocketAddr, path::Path, process::Command};

use crate::support::{
    client::Transport,
    route::{Hop, Route},
};

/// The time in seconds after which each proxy closes an idle connection. Held requests (one second here), the keep-alives
/// of a streaming session (half a second) and the clients' keep-alives are more frequent, as they are with the usual
/// time-outs of minutes.
const TIMEOUT: u32 = 2;

pub const PLAIN: &[Transport] = &[Transport::Raw, Transport::Streaming, Transport::Polling, Transport::Hybrid];
pub const TLS: &[Transport] = &[Transport::Tls, Transport::StreamingTls, Transport::PollingTls, Transport::HybridTls];
const TUNNEL: &[Transport] = &[Transport::Streaming, Transport::Polling, Transport::Hybrid];
const TUNNEL_TLS: &[Transport] = &[Transport::StreamingTls, Transport::PollingTls, Transport::HybridTls];
/// Those of a proxy that holds responses back until they are complete.
const TUNNEL_HELD_BACK: &[Transport] = &[Transport::Polling, Transport::Hybrid];

/// The addresses and files of a row while it runs.
pub struct Place<'a> {
    /// The address on which the proxy listens.
    pub at: SocketAddr,
    /// The address of the multiplexer.
    pub mux: SocketAddr,
    pub folder: &'a Path,
}

impl Place<'_> {
    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    /// Writes a file. Returns its path.
    fn write(&self, name: &str, text: &str) -> String {
        fs::write(self.folder.join(name), text).unwrap();
        self.path(name)
    }
}

/// A row of the matrix.
pub struct Row {
    pub proxy: &'static str,
    /// How clients connect through the proxy, as the document describes it.
    pub connection: &'static str,
    /// The program, its Debian package, and the arguments that make it print its version.
    pub program: Option<(&'static str, &'static str, &'static [&'static str])>,
    pub command: Box<dyn Fn(&Place) -> Command + Send + Sync>,
    pub route: fn(&Place) -> Route,
    pub transports: &'static [Transport],
    /// Whether the proxy holds responses back until they are complete.
    pub holds_back: bool,
    /// Lines of the multiplexer's configuration.
    pub settings: &'static str,
    /// libmeanwhile's option for the proxy, which may be empty; `None`: libmeanwhile does not run.
    pub meanwhile: Option<&'static str>,
    /// The arguments of curl, in which `{at}` and `{mux}` are replaced; empty: curl does not run.
    pub curl: &'static [&'static str],
    /// The arguments of `openssl s_client`; `None`: openssl does not run.
    pub openssl: Option<&'static [&'static str]>,
}

type Program = Option<(&'static str, &'static str, &'static [&'static str])>;

const NONE: Program = None;
const DANTE: Program = Some(("danted", "dante-server", &["-v"]));
// The program prints no version, so that of its package is used.
const MICROSOCKS: Program = Some(("microsocks", "microsocks", &[]));
const SQUID: Program = Some(("squid", "squid", &["-v"]));
const TINYPROXY: Program = Some(("tinyproxy", "tinyproxy-bin", &["-v"]));
const NGINX: Program = Some(("nginx", "nginx-light", &["-v"]));
const HAPROXY: Program = Some(("haproxy", "haproxy", &["-v"]));
const APACHE: Program = Some(("apache2", "apache2-bin", &["-v"]));
const STUNNEL: Program = Some(("stunnel4", "stunnel4", &["-version"]));

const CURL_DIRECT: &[&str] = &["http://{at}/CommunityCBR"];
const CURL_PREFIX: &[&str] = &["http://{at}/st01/CommunityCBR"];
const CURL_TLS: &[&str] = &["--insecure", "https://{at}/CommunityCBR"];
const CURL_PREFIX_TLS: &[&str] = &["--insecure", "https://{at}/st01/CommunityCBR"];
const CURL_SOCKS5: &[&str] = &["--socks5", "{at}", "http://{mux}/CommunityCBR"];
const OPENSSL: Option<&[&str]> = Some(&["-connect", "{at}"]);
const OPENSSL_CONNECT: Option<&[&str]> = Some(&["-proxy", "{at}", "-connect", "{mux}"]);

/// All rows.
pub fn rows() -> Vec<Row> {
    let mut rows = vec![
        row("none", "direct", NONE, |_| Command::new("true"), direct, PLAIN).meanwhile("").curl(CURL_DIRECT),
        row("none", "direct, TLS", NONE, |_| Command::new("true"), direct, TLS).curl(CURL_TLS).openssl(OPENSSL),
    ];
    rows.extend(socks());
    rows.extend(http_proxies());
    rows.extend(nginx());
    rows.extend(haproxy());
    rows.extend(apache());
    rows.push(row("stunnel", "TLS ended", STUNNEL, stunnel, direct, TLS).curl(CURL_TLS).openssl(OPENSSL));
    rows
}

fn row(
    proxy: &'static str,
    connection: &'static str,
    program: Program,
    command: impl Fn(&Place) -> Command + Send + Sync + 'static,
    route: fn(&Place) -> Route,
    transports: &'static [Transport],
) -> Row {
    let command = Box::new(command);
    Row {
        proxy,
        connection,
        program,
        command,
        route,
        transports,
        holds_back: false,
        settings: "",
        meanwhile: None,
        curl: &[],
        openssl: None,
    }
}

impl Row {
    fn meanwhile(self, option: &'static str) -> Self {
        Self { meanwhile: Some(option), ..self }
    }

    fn curl(self, arguments: &'static [&'static str]) -> Self {
        Self { curl: arguments, ..self }
    }

    fn openssl(self, arguments: Option<&'static [&'static str]>) -> Self {
        Self { openssl: arguments, ..self }
    }

    fn holds_back(self) -> Self {
        Self { holds_back: true, ..self }
    }

    fn settings(self, settings: &'static str) -> Self {
        Self { settings, ..self }
    }
}

fn direct(place: &Place) -> Route {
    place.at.into()
}

fn under_prefix(place: &Place) -> Route {
    Route::behind(place.at, "/st01")
}

fn connect(place: &Place) -> Route {
    Route::through(place.at, Hop::Connect, place.mux)
}

fn absolute(place: &Place) -> Route {
    Route::absolute(place.at, place.mux)
}

fn socks4(place: &Place) -> Route {
    Route::through(place.at, Hop::Socks4, place.mux)
}

fn socks5(place: &Place) -> Route {
    Route::through(place.at, Hop::Socks5, place.mux)
}

fn socks5_name(place: &Place) -> Route {
    Route::through(place.at, Hop::Socks5Name, place.mux)
}

fn socks() -> Vec<Row> {
    let dante = |place: &Place| {
        let file = place.write(
            "danted.conf",
            &format!(
                "errorlog: stderr\ninternal: 127.0.0.1 port = {}\nexternal: 127.0.0.1\nsocksmethod: none\n\
                 clientmethod: none\nuser.privileged: root\nuser.unprivileged: nobody\ntimeout.io: {TIMEOUT}\n\
                 client pass {{ from: 127.0.0.0/8 to: 0/0 }}\nsocks pass {{ from: 0/0 to: 0/0 }}\n",
                place.at.port()
            ),
        );
        let mut command = Command::new("danted");
        command.args(["-p", &place.path("danted.pid"), "-f", &file]);
        command
    };
    let microsocks = |login: bool| {
        move |place: &Place| {
            let mut command = Command::new("microsocks");
            command.args(["-i", "127.0.0.1", "-p", &place.at.port().to_string()]);
            if login {
                command.args(["-u", "alice", "-P", "open sesame"]);
            }
            command
        }
    };
    vec![
        row("dante", "SOCKS4", DANTE, dante, socks4, PLAIN).meanwhile("--socks4").curl(&[
            "--socks4",
            "{at}",
            "http://{mux}/CommunityCBR",
        ]),
        row("dante", "SOCKS5 by address", DANTE, dante, socks5, PLAIN).meanwhile("--socks5").curl(CURL_SOCKS5),
        row("dante", "SOCKS5 by name", DANTE, dante, socks5_name, PLAIN).curl(&[
            "--socks5-hostname",
            "{at}",
            "http://{mux}/CommunityCBR",
        ]),
        row("dante", "SOCKS5, TLS inside", DANTE, dante, socks5, TLS),
        row("microsocks", "SOCKS5 by address", MICROSOCKS, microsocks(false), socks5, PLAIN)
            .meanwhile("--socks5")
            .curl(CURL_SOCKS5),
        row("microsocks", "SOCKS5 by name", MICROSOCKS, microsocks(false), socks5_name, PLAIN),
        row(
            "microsocks",
            "SOCKS5 with log-in",
            MICROSOCKS,
            microsocks(true),
            |place| socks5(place).login("alice", "open sesame"),
            PLAIN,
        )
        .curl(&["--socks5", "{at}", "--proxy-user", "alice:open sesame", "http://{mux}/CommunityCBR"]),
    ]
}

/// The recipe of `docs/interop.md` for this program, with the addresses and the time-out of the test.
fn recipe(place: &Place, program: &str, changes: &[(&str, &str)]) -> String {
    let document = fs::read_to_string(crate::DOCUMENT).unwrap();
    let begin = format!("```{program}\n");
    let mut recipe = document.split_once(&begin).unwrap().1.split_once("```").unwrap().0.to_owned();
    let mux = place.mux.to_string();
    for (of_recipe, of_test) in [("192.0.2.10:8082", &mux[..]), ("192.0.2.10", "127.0.0.1")].iter().chain(changes) {
        let of_test = of_test
            .replace("{at}", &place.at.to_string())
            .replace("{port}", &place.mux.port().to_string())
            .replace("{timeout}", &TIMEOUT.to_string());
        recipe = recipe.replace(of_recipe, &of_test);
    }
    recipe
}

fn squid_with(place: &Place, configuration: &str) -> Command {
    let file = place.write("squid.conf", configuration);
    let mut command = Command::new("squid");
    command.args(["-N", "-f", &file]);
    command
}

fn http_proxies() -> Vec<Row> {
    let squid = |place: &Place| {
        squid_with(
            place,
            &format!(
                "http_port {}\nhttp_access allow all\npid_filename none\naccess_log none\ncache_log /dev/null\n\
                 cache deny all\ncache_mem 1 MB\nshutdown_lifetime 0 seconds\npinger_enable off\n\
                 visible_hostname localhost\nread_timeout {TIMEOUT} seconds\nclient_idle_pconn_timeout {TIMEOUT} seconds\n\
                 server_idle_pconn_timeout {TIMEOUT} seconds\n",
                place.at
            ),
        )
    };
    let tinyproxy = |place: &Place| {
        let file = place.write(
            "tinyproxy.conf",
            &format!("Port {}\nListen 127.0.0.1\nAllow 127.0.0.1\nTimeout {TIMEOUT}\n", place.at.port()),
        );
        let mut command = Command::new("tinyproxy");
        command.args(["-d", "-c", &file]);
        command
    };
    let tunnelled: &[&str] = &["--proxytunnel", "--proxy", "http://{at}", "http://{mux}/CommunityCBR"];
    let proxied: &[&str] = &["--proxy", "http://{at}", "http://{mux}/CommunityCBR"];
    vec![
        row("squid", "CONNECT", SQUID, squid, connect, PLAIN).meanwhile("--connect").curl(tunnelled),
        row("squid", "CONNECT, TLS inside", SQUID, squid, connect, TLS).openssl(OPENSSL_CONNECT),
        row("squid", "plain HTTP", SQUID, squid, absolute, TUNNEL).curl(proxied),
        row(
            "squid",
            "plain HTTP, the recipe below",
            SQUID,
            |place| {
                let recipe = recipe(
                    place,
                    "squid",
                    &[
                        ("3128", "{at}"),
                        ("10.0.0.0/8", "127.0.0.0/8"),
                        ("15 minutes", "{timeout} seconds"),
                        ("8082", "8082 {port}"),
                    ],
                );
                let of_test = "pid_filename none\naccess_log none\ncache_log /dev/null\ncache_mem 1 MB\n\
                               shutdown_lifetime 0 seconds\npinger_enable off\nvisible_hostname localhost\n";
                squid_with(place, &(recipe + of_test))
            },
            absolute,
            TUNNEL,
        ),
        row("tinyproxy", "CONNECT", TINYPROXY, tinyproxy, connect, PLAIN).meanwhile("--connect").curl(tunnelled),
        row("tinyproxy", "CONNECT, TLS inside", TINYPROXY, tinyproxy, connect, TLS).openssl(OPENSSL_CONNECT),
        row("tinyproxy", "plain HTTP", TINYPROXY, tinyproxy, absolute, TUNNEL).curl(proxied),
    ]
}

/// nginx with `body` as its configuration.
fn nginx_with(place: &Place, body: &str) -> Command {
    let path = place.folder.display();
    // The stream module may be built in, or a file.
    let module = "/usr/lib/nginx/modules/ngx_stream_module.so";
    let load = if Path::new(module).exists() { format!("load_module {module};\n") } else { String::new() };
    let file = place.write(
        "nginx.conf",
        &format!(
            "{load}worker_processes 1; pid {path}/pid; error_log {path}/error.log;\n\
             events {{ worker_connections 256; }}\n{body}"
        ),
    );
    let mut command = Command::new("nginx");
    command.args(["-p", &path.to_string(), "-c", &file, "-e", &format!("{path}/error.log")]);
    command.args(["-g", "daemon off; master_process off;"]);
    command
}

/// nginx with `body` as the configuration of its HTTP part.
fn nginx_http_with(place: &Place, body: &str) -> Command {
    let path = place.folder.display();
    nginx_with(
        place,
        &format!(
            "http {{ access_log off; client_body_temp_path {path}/body; proxy_temp_path {path}/proxy;\n\
             fastcgi_temp_path {path}/fastcgi; uwsgi_temp_path {path}/uwsgi; scgi_temp_path {path}/scgi;\n{body} }}\n"
        ),
    )
}

fn nginx_http(place: &Place, server: &str, location: &str) -> Command {
    let (at, mux) = (place.at, place.mux);
    let ssl = if server.contains("ssl_certificate") { " ssl" } else { "" };
    nginx_http_with(
        place,
        &format!(
            "upstream mux {{ server {mux}; keepalive 8; }}\n\
             keepalive_timeout {TIMEOUT}s;\n\
             server {{ listen {at}{ssl}; {server}\n\
             location /st01/ {{ proxy_pass http://mux; proxy_read_timeout {TIMEOUT}s; {location} }} }}"
        ),
    )
}

fn nginx_stream(place: &Place, server: &str) -> Command {
    let (at, mux) = (place.at, place.mux);
    let ssl = if server.contains("ssl_certificate") { " ssl" } else { "" };
    nginx_with(
        place,
        &format!("stream {{ server {{ listen {at}{ssl}; proxy_pass {mux}; proxy_timeout {TIMEOUT}s; {server} }} }}\n"),
    )
}

fn nginx() -> Vec<Row> {
    let tls = |place: &Place| {
        format!("ssl_certificate {}; ssl_certificate_key {};", place.path("server.pem"), place.path("server.key"))
    };
    let kept = "proxy_http_version 1.1; proxy_set_header Connection '';";
    vec![
        row(
            "nginx",
            "prefix, HTTP/1.0 upstream, response buffering (its defaults)",
            NGINX,
            |place| nginx_http(place, "", ""),
            under_prefix,
            TUNNEL,
        )
        .curl(CURL_PREFIX),
        row(
            "nginx",
            "prefix, response buffering forced (`proxy_ignore_headers X-Accel-Buffering`)",
            NGINX,
            |place| nginx_http(place, "", "proxy_ignore_headers X-Accel-Buffering;"),
            under_prefix,
            TUNNEL_HELD_BACK,
        )
        .holds_back()
        .curl(CURL_PREFIX),
        row(
            "nginx",
            "prefix, HTTP/1.1 kept alive upstream, no buffering",
            NGINX,
            move |place| nginx_http(place, "", &format!("{kept} proxy_buffering off; proxy_request_buffering off;")),
            under_prefix,
            TUNNEL,
        )
        .curl(CURL_PREFIX),
        row(
            "nginx",
            "prefix, keep-alive off",
            NGINX,
            |place| nginx_http(place, "keepalive_timeout 0;", ""),
            under_prefix,
            TUNNEL,
        )
        .curl(CURL_PREFIX),
        row(
            "nginx",
            "prefix, TLS ended",
            NGINX,
            move |place| nginx_http(place, &tls(place), kept),
            under_prefix,
            TUNNEL_TLS,
        )
        .curl(CURL_PREFIX_TLS)
        .openssl(OPENSSL),
        row(
            "nginx",
            "prefix, the recipe below",
            NGINX,
            |place| {
                nginx_http_with(place, &recipe(place, "nginx", &[("listen 80", "listen {at}"), ("75s", "{timeout}s")]))
            },
            under_prefix,
            TUNNEL,
        )
        .curl(CURL_PREFIX),
        row("nginx", "stream", NGINX, |place| nginx_stream(place, ""), direct, PLAIN).meanwhile("").curl(CURL_DIRECT),
        row("nginx", "stream, TLS passed through", NGINX, |place| nginx_stream(place, ""), direct, TLS)
            .curl(CURL_TLS)
            .openssl(OPENSSL),
        row("nginx", "stream, TLS ended", NGINX, move |place| nginx_stream(place, &tls(place)), direct, TLS)
            .curl(CURL_TLS)
            .openssl(OPENSSL),
        row(
            "nginx",
            "stream, PROXY protocol 1",
            NGINX,
            |place| nginx_stream(place, "proxy_protocol on;"),
            direct,
            PLAIN,
        )
        .settings("[listeners]\nproxy_protocol_from = [\"127.0.0.0/8\"]\n")
        .meanwhile("")
        .curl(CURL_DIRECT),
    ]
}

fn haproxy_with(place: &Place, mode: &str, bind: &str, more: &str, server: &str) -> Command {
    let (at, mux) = (place.at, place.mux);
    let file = place.write(
        "haproxy.cfg",
        &format!(
            "global\n  maxconn 500\ndefaults\n  mode {mode}\n  timeout connect {TIMEOUT}s\n  timeout client {TIMEOUT}s\n  \
             timeout server {TIMEOUT}s\nfrontend clients\n  bind {at} {bind}\n  {more}\n  default_backend mux\n\
             backend mux\n  server mux {mux} {server}\n"
        ),
    );
    let mut command = Command::new("haproxy");
    command.args(["-db", "-q", "-f", &file]);
    command
}

fn haproxy() -> Vec<Row> {
    // HAProxy expects certificate and key in one file.
    let crt = |place: &Place| {
        let pair = ["server.pem", "server.key"].map(|name| fs::read_to_string(place.folder.join(name)).unwrap());
        format!("ssl crt {}", place.write("both.pem", &pair.concat()))
    };
    let trusted = "[listeners]\nproxy_protocol_from = [\"127.0.0.0/8\"]\n";
    vec![
        row("HAProxy", "HTTP, prefix", HAPROXY, |place| haproxy_with(place, "http", "", "", ""), under_prefix, TUNNEL)
            .curl(CURL_PREFIX),
        row(
            "HAProxy",
            "HTTP, prefix, keep-alive off",
            HAPROXY,
            |place| haproxy_with(place, "http", "", "option httpclose", ""),
            under_prefix,
            TUNNEL,
        )
        .curl(CURL_PREFIX),
        row(
            "HAProxy",
            "HTTP, prefix, TLS ended",
            HAPROXY,
            move |place| haproxy_with(place, "http", &crt(place), "", ""),
            under_prefix,
            TUNNEL_TLS,
        )
        .curl(CURL_PREFIX_TLS)
        .openssl(OPENSSL),
        row("HAProxy", "TCP", HAPROXY, |place| haproxy_with(place, "tcp", "", "", ""), direct, PLAIN)
            .meanwhile("")
            .curl(CURL_DIRECT),
        row("HAProxy", "TCP, TLS passed through", HAPROXY, |place| haproxy_with(place, "tcp", "", "", ""), direct, TLS)
            .curl(CURL_TLS)
            .openssl(OPENSSL),
        row(
            "HAProxy",
            "TCP, TLS ended",
            HAPROXY,
            move |place| haproxy_with(place, "tcp", &crt(place), "", ""),
            direct,
            TLS,
        )
        .curl(CURL_TLS)
        .openssl(OPENSSL),
        row(
            "HAProxy",
            "TCP, PROXY protocol 1",
            HAPROXY,
            |place| haproxy_with(place, "tcp", "", "", "send-proxy"),
            direct,
            PLAIN,
        )
        .settings(trusted)
        .meanwhile("")
        .curl(CURL_DIRECT),
        row(
            "HAProxy",
            "TCP, PROXY protocol 2",
            HAPROXY,
            |place| haproxy_with(place, "tcp", "", "", "send-proxy-v2"),
            direct,
            PLAIN,
        )
        .settings(trusted)
        .meanwhile("")
        .curl(CURL_DIRECT),
    ]
}

fn apache_with(place: &Place, more: &str) -> Command {
    apache_with_all(place, &format!("{more}\nProxyPass /st01/ http://{}/st01/", place.mux))
}

/// Apache with `more` at the end of its configuration.
fn apache_with_all(place: &Place, more: &str) -> Command {
    let (path, at) = (place.folder.display(), place.at);
    let names = ["mpm_event", "authz_core", "env", "proxy", "proxy_http", "ssl"];
    let load: String = names.iter().fold(String::new(), |load, name| {
        load + &format!("LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n")
    });
    let file = place.write(
        "apache2.conf",
        &format!(
            "ServerRoot {path}\nServerName localhost\nPidFile {path}/pid\nErrorLog {path}/error.log\nListen {at}\n{load}\
             DefaultRuntimeDir {path}\nMutex sem\nThreadsPerChild 32\nMaxRequestWorkers 32\nTimeout {TIMEOUT}\nKeepAliveTimeout {TIMEOUT}\n\
             {more}\n"
        ),
    );
    let mut command = Command::new("apache2");
    command.args(["-X", "-f", &file]);
    command
}

fn apache() -> Vec<Row> {
    vec![
        row("Apache", "prefix", APACHE, |place| apache_with(place, ""), under_prefix, TUNNEL).curl(CURL_PREFIX),
        row(
            "Apache",
            "prefix, keep-alive off",
            APACHE,
            |place| apache_with(place, "KeepAlive Off\nSetEnv proxy-nokeepalive 1"),
            under_prefix,
            TUNNEL,
        )
        .curl(CURL_PREFIX),
        row(
            "Apache",
            "prefix, HTTP/1.0 upstream",
            APACHE,
            |place| apache_with(place, "SetEnv force-proxy-request-1.0 1"),
            under_prefix,
            TUNNEL,
        )
        .curl(CURL_PREFIX),
        row(
            "Apache",
            "prefix, the recipe below",
            APACHE,
            |place| apache_with_all(place, &recipe(place, "apache", &[("75", "{timeout}")])),
            under_prefix,
            TUNNEL,
        )
        .curl(CURL_PREFIX),
        row(
            "Apache",
            "prefix, TLS ended",
            APACHE,
            |place| {
                let (certificate, key) = (place.path("server.pem"), place.path("server.key"));
                let lines = format!("SSLEngine on\nSSLCertificateFile {certificate}\nSSLCertificateKeyFile {key}");
                apache_with(place, &lines)
            },
            under_prefix,
            TUNNEL_TLS,
        )
        .curl(CURL_PREFIX_TLS)
        .openssl(OPENSSL),
    ]
}

fn stunnel(place: &Place) -> Command {
    let file = place.write(
        "stunnel.conf",
        &format!(
            "foreground = yes\npid =\nsyslog = no\n[sametime]\naccept = {}\nconnect = {}\ncert = {}\nkey = {}\n\
             TIMEOUTidle = {TIMEOUT}\nTIMEOUTclose = 0\n",
            place.at,
            place.mux,
            place.path("server.pem"),
            place.path("server.key")
        ),
    );
    let mut command = Command::new("stunnel4");
    command.arg(file);
    command
}
