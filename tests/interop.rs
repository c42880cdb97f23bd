//! Clients through many proxies and over every transport: the matrix of `docs/interop.md`. After a change that changes the
//! matrix on purpose, and with other versions of the proxies, `SAMETIME_MUX_RECORD=1 cargo test --test interop` writes
//! the document's tables.
#![allow(clippy::cast_possible_truncation, clippy::unwrap_used, unreachable_pub)]

#[path = "interop/finch.rs"]
mod finch;
#[path = "interop/rows.rs"]
mod rows;
mod support;

use std::{
    collections::BTreeSet,
    fs,
    net::TcpStream,
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use rows::{Place, Row};
use support::{
    client::{Client, Transport},
    has,
    mux::{self, Mux},
    peer::{CHAT, Process, assert_chat, free_address, meanwhile, run, run_meanwhile, text},
    route::Route,
    streaming,
    tunnel::Pace,
    wait_until,
};

const COLUMNS: [&str; 8] = ["raw", "streaming", "polling", "hybrid", "libmeanwhile", "finch", "curl", "openssl"];
/// Longer than the idle time-out of every proxy in `rows.rs`.
const IDLE: Duration = Duration::from_millis(3_500);
/// How long a streaming client waits for the first bytes of its response. A real one waits for 15 s.
const BEGINNING: Duration = Duration::from_secs(5);
/// The longest time of a row. On two idle cores, no row takes half a minute.
const ROW: Duration = Duration::from_secs(240);
/// The outcome of a cell that cannot work, as the document says.
const HELD_BACK: &str = "held back";
const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/interop.md");

fn column(transport: Transport) -> &'static str {
    match transport {
        Transport::Raw | Transport::Tls => "raw",
        Transport::Polling | Transport::PollingTls => "polling",
        Transport::Hybrid | Transport::HybridTls => "hybrid",
        Transport::Streaming | Transport::StreamingTls => "streaming",
    }
}

/// The waiting times of a client, which are shorter than those of a real one.
const PACE: Pace = Pace {
    idle: Duration::from_millis(200),
    held_timeout: Duration::from_millis(500),
    retry: Duration::from_millis(200),
};

/// A client that is logged in and has an open chat.
struct ChatClient {
    transport: Transport,
    client: Client,
    channel: u32,
}

/// Sends a message and reads its echo.
async fn chat(client: &mut Client, channel: u32, text: &[u8]) {
    client.send_text(channel, text).await;
    assert_eq!(client.recv().await.expect("an answer").text(), text);
}

impl ChatClient {
    async fn start(transport: Transport, route: Route) -> Self {
        let mut client = Client::connect_through(transport, &route, PACE).await.unwrap();
        client.log_in("bob").await;
        let channel = client.open_chat("echo").await;
        for said in [&b"hello"[..], &[b'x'; 40_000]] {
            chat(&mut client, channel, said).await;
        }
        Self { transport, client, channel }
    }

    /// Whether the session ends with its connection through the proxy.
    fn is_on_one_connection(&self) -> bool {
        matches!(self.transport, Transport::Raw | Transport::Tls | Transport::Streaming | Transport::StreamingTls)
    }

    /// Sends nothing except the usual keep-alives, for longer than the time-outs of the proxies. A streaming client
    /// sends nothing at all: the multiplexer's keep-alives hold its response open.
    async fn idle(mut self) -> Self {
        let is_streaming = column(self.transport) == "streaming";
        let until = tokio::time::Instant::now() + IDLE;
        while tokio::time::Instant::now() < until {
            if !is_streaming {
                self.client.send(&[0x80]).await;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        chat(&mut self.client, self.channel, b"still there").await;
        self
    }

    /// After a restart of the proxy: a polling or hybrid session continues, a raw or streaming client logs in again.
    async fn after_restart(mut self, route: Route, restarted: bool) {
        if restarted && self.is_on_one_connection() {
            self.client.recv_all().await;
            self = Self::start(self.transport, route).await;
        }
        chat(&mut self.client, self.channel, b"and again").await;
        self.client.log_out().await;
        self.client.recv_all().await;
    }
}

type Cells = Vec<(&'static str, Result<(), String>)>;

/// Runs `phase` for each of `cells`. Returns the results, and adds failures to `failed`.
async fn run_phase<T: Send + 'static, U: Send + 'static, F>(
    cells: Vec<(Transport, T)>,
    failed: &mut Cells,
    phase: impl Fn(Transport, T) -> F,
) -> Vec<(Transport, U)>
where
    F: Future<Output = U> + Send + 'static,
{
    let tasks: Vec<_> =
        cells.into_iter().map(|(transport, cell)| (transport, tokio::spawn(phase(transport, cell)))).collect();
    let mut left = Vec::new();
    for (transport, task) in tasks {
        match task.await {
            Ok(done) => left.push((transport, done)),
            Err(why) => failed.push((column(transport), Err(panicked(why)))),
        }
    }
    left
}

/// The message of a task that panicked.
fn panicked(why: tokio::task::JoinError) -> String {
    let why = why.into_panic();
    let said = why.downcast_ref::<String>().cloned().or_else(|| why.downcast_ref::<&str>().map(|s| (*s).to_owned()));
    said.unwrap_or_else(|| "panicked".to_owned())
}

/// Starts the proxy of a row; `None` if the row has none.
async fn start_proxy(row: &Row, place: &Place<'_>) -> Option<Process> {
    row.program?;
    let process = Process::start_logged(&mut (row.command)(place), &place.folder.join("proxy.log"));
    let what = format!("{}, {}: its port", row.proxy, row.connection);
    wait_until(&what, || TcpStream::connect(place.at).is_ok()).await;
    Some(process)
}

/// Runs all cells of a row.
async fn run_row(row: Row) -> (Row, Cells) {
    let folder = tempfile::tempdir().unwrap();
    write_certificate(folder.path());
    let settings =
        format!("{}[tunnel]\nhold = \"1s\"\nstream_keep_alive = \"500ms\"\n[admin]\nlisten = \"\"\n", row.settings);
    let mux = mux::start(&settings).await;
    let at = if row.program.is_some() { free_address() } else { mux.raw() };
    let place = Place { at, mux: mux.raw(), folder: folder.path() };
    let proxy = start_proxy(&row, &place).await;
    let route = (row.route)(&place);
    let mut cells: Cells = Vec::new();

    let cells_of_transports = row.transports.iter().map(|transport| (*transport, route.clone())).collect();
    let start = |transport, route| async move { ChatClient::start(transport, route).await.idle().await };
    let clients = run_phase(cells_of_transports, &mut cells, start).await;
    let restarted = proxy.is_some();
    drop(proxy);
    let _proxy = start_proxy(&row, &place).await;
    let done = run_phase(clients, &mut cells, |_, client| client.after_restart(route.clone(), restarted)).await;
    cells.extend(done.into_iter().map(|(transport, ())| (column(transport), Ok(()))));
    if row.holds_back {
        assert_held_back(&route).await;
        cells.push(("streaming", Err(HELD_BACK.to_owned())));
    }
    cells.extend(run_programs(&row, &place).await);
    wait_for_end(&row, &mux).await;
    (row, cells)
}

/// Waits until the multiplexer has no session.
async fn wait_for_end(row: &Row, mux: &Mux) {
    let what = format!("{}, {}: the end of every session", row.proxy, row.connection);
    wait_until(&what, || mux.server.sessions() == 0).await;
}

/// A streaming client through a proxy that holds the response back until it is complete, which it never is.
async fn assert_held_back(route: &Route) {
    match tokio::time::timeout(BEGINNING, streaming::open(route, false)).await {
        Err(_) | Ok(Err(_)) => (),
        Ok(Ok(_)) => panic!("the proxy passes the response on: the row has to say so"),
    }
}

/// Runs the clients of other projects.
async fn run_programs(row: &Row, place: &Place<'_>) -> Cells {
    let mut cells = Vec::new();
    let filled =
        |argument: &&str| argument.replace("{at}", &place.at.to_string()).replace("{mux}", &place.mux.to_string());
    if let Some(option) = row.meanwhile.filter(|_| meanwhile().is_some()) {
        let (at, mux, straight) = (place.at, place.mux, option.is_empty());
        let task = tokio::spawn(async move {
            let proxy = at.to_string();
            let through: &[&str] = if straight { &[] } else { &[option, &proxy] };
            assert_chat(run_meanwhile(through, if straight { at } else { mux }, "ann", "secret", CHAT).await);
        });
        cells.push(("libmeanwhile", task.await.map_err(panicked)));
    }
    if row.transports.contains(&Transport::Raw) && finch::is_there() {
        let (route, folder) = ((row.route)(place), place.folder.to_owned());
        let task = tokio::spawn(async move { finch::chat(&route, &folder).await });
        cells.push(("finch", task.await.map_err(panicked)));
    }
    if !row.curl.is_empty() && has("curl", "curl") {
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--max-time", "20", "--write-out", "%{http_code}", "--output"]);
        command.arg(place.folder.join("curl.out"));
        if !row.curl.iter().any(|argument| argument.contains("prox") || argument.contains("socks")) {
            command.args(["--noproxy", "*"]);
        }
        let output = run(command.args(row.curl.iter().map(filled))).await;
        let said = text(&output.stdout);
        let outcome = if said == "200" { Ok(()) } else { Err(format!("{said} {}", text(&output.stderr))) };
        cells.push(("curl", outcome));
    }
    if let Some(arguments) = row.openssl.filter(|_| has("openssl", "openssl")) {
        let mut command = Command::new("openssl");
        command.arg("s_client").args(arguments.iter().map(filled)).stdin(Stdio::null());
        let output = run(&mut command).await;
        let said = text(&output.stdout);
        let there = said.contains("BEGIN CERTIFICATE") && said.contains("New, TLSv1.");
        cells.push(("openssl", if there { Ok(()) } else { Err(text(&output.stderr)) }));
    }
    cells
}

/// Writes a certificate for the proxies that terminate TLS.
fn write_certificate(folder: &Path) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    fs::write(folder.join("server.pem"), made.cert.pem()).unwrap();
    fs::write(folder.join("server.key"), made.signing_key.serialize_pem()).unwrap();
}

/// A line of the document's table.
fn line(row: &Row, cells: &Cells) -> String {
    let of = |column: &&str| match cells.iter().find(|(of, _)| of == column) {
        None => " ",
        Some((_, Ok(()))) => "yes",
        Some((_, Err(why))) if why == HELD_BACK => "no ¹",
        Some((_, Err(_))) => "NO",
    };
    let cells: Vec<_> = COLUMNS.iter().map(of).collect();
    format!("| {} | {} | {} |", row.proxy, row.connection, cells.join(" | "))
}

/// The name of a row's proxy and its version, from the program or from its Debian package.
fn version(row: &Row) -> Option<(String, String)> {
    let (program, package, arguments) = row.program?;
    let said = if arguments.is_empty() {
        Command::new("dpkg-query").args(["--show", "--showformat", "${Version}", package]).output().unwrap().stdout
    } else {
        let output = Command::new(program).args(arguments).output().unwrap();
        [output.stdout, output.stderr].concat()
    };
    let number = text(&said).split(|c: char| c.is_whitespace() || "/v,".contains(c)).find_map(|word| {
        let numeric = word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('.');
        numeric.then(|| word.split(['-', '+']).next().unwrap().trim_end_matches('.').to_owned())
    });
    Some((row.proxy.to_owned(), number.unwrap_or_else(|| "?".to_owned())))
}

/// The document before the first mark, between the marks `name`, and from the second mark on.
fn parts<'a>(document: &'a str, name: &str) -> (&'a str, &'a str, &'a str) {
    let (begin, end) = (format!("<!-- {name} -->\n"), format!("<!-- end of {name} -->"));
    let from = document.find(&begin).unwrap() + begin.len();
    let to = document.find(&end).unwrap();
    (&document[..from], &document[from..to], &document[to..])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_client_works_through_every_proxy() {
    let mut tasks = Vec::new();
    // The number of rows that run at the same time: few enough for two cores.
    let places = Arc::new(tokio::sync::Semaphore::new(8));
    meanwhile();
    for row in rows::rows() {
        if row.program.is_some_and(|(program, package, _)| !has(program, package)) {
            continue;
        }
        let places = Arc::clone(&places);
        tasks.push(tokio::spawn(async move {
            let _place = places.acquire_owned().await.unwrap();
            let which = format!("{}, {}", row.proxy, row.connection);
            tokio::time::timeout(ROW, run_row(row)).await.unwrap_or_else(|_| panic!("never came to its end: {which}"))
        }));
    }
    assert!(tasks.len() >= 2, "the direct rows need no proxy");
    let (mut lines, mut versions, mut failures) = (Vec::new(), BTreeSet::new(), Vec::new());
    for task in tasks {
        let (row, cells) = task.await.unwrap();
        for (column, outcome) in &cells {
            if let Err(why) = outcome
                && why != HELD_BACK
            {
                failures.push(format!("{}, {}, {column}: {why}", row.proxy, row.connection));
            }
        }
        lines.push(line(&row, &cells));
        versions.extend(version(&row));
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    let document = fs::read_to_string(DOCUMENT).unwrap();
    if std::env::var_os("SAMETIME_MUX_RECORD").is_some() {
        let (before, _, after) = parts(&document, "matrix");
        let heads =
            format!("| proxy | connection | {} |\n|---|---|{}\n", COLUMNS.join(" | "), "---|".repeat(COLUMNS.len()));
        let document = format!("{before}{heads}{}\n{after}", lines.join("\n"));
        let (before, _, after) = parts(&document, "versions");
        let versions: Vec<_> = versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
        fs::write(DOCUMENT, format!("{before}{}.\n{after}", versions.join(", "))).unwrap();
        return;
    }
    let (_, recorded, _) = parts(&document, "matrix");
    for line in &lines {
        // A cell that did not run, because its program is missing, is not compared.
        let agrees =
            |recorded: &str| recorded.split('|').zip(line.split('|')).all(|(was, is)| is == "   " || was == is);
        assert!(recorded.lines().any(agrees), "docs/interop.md says something else than\n{line}");
    }
}
