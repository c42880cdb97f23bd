//! Listening addresses: what a name that fails, a reload, a slow name server and a shared port number do to listeners.
//! A listener never opens where the file does not say, and a reload leaves no gap.
#![allow(clippy::cast_possible_truncation, clippy::unwrap_used, missing_docs, unreachable_pub)]

#[path = "faults/dns.rs"]
mod dns;
#[path = "listeners/knock.rs"]
mod knock;
#[path = "faults/namespaces.rs"]
mod namespaces;
mod support;

use std::{fmt::Write, fs, net::SocketAddr, path::Path, process::Command, time::Duration};

use dns::{Answer, Dns};
use knock::{Knockers, RemoteKnockers};
use serde_json::Value;
use support::{
    client::{Client, Transport},
    has, in_time,
    peer::{Process, free_address, text},
    program::{Program, Setup, local},
    wait_until,
};

const CLIENTS: &str = "client_connections";
const HTTP: &str = "http_tunneled_client_connections";
const HTTPS: &str = "https_tunneled_client_connections";

/// A configuration database: each section's `host_name` and ports; without a port number where the test has none.
struct Database<'a> {
    sections: [(&'a str, &'a str, Vec<u16>); 3],
    admin: String,
    more: &'a str,
}

impl<'a> Database<'a> {
    /// The ports of `setup`, each on 127.0.0.1.
    fn of(setup: &Setup) -> Self {
        let on_loopback = |section, port| (section, "127.0.0.1", vec![port]);
        Self {
            sections: [on_loopback(CLIENTS, setup.raw), on_loopback(HTTP, setup.http), on_loopback(HTTPS, setup.https)],
            admin: format!("127.0.0.1:{}", setup.admin),
            more: "",
        }
    }

    fn set(&mut self, section: &str, host_name: &'a str, ports: &[u16]) -> &mut Self {
        let found = self.sections.iter_mut().find(|(name, ..)| *name == section).unwrap();
        (found.1, found.2) = (host_name, ports.to_vec());
        self
    }

    fn write(&self, folder: &Path) {
        let mut toml = String::new();
        for (section, host_name, ports) in &self.sections {
            writeln!(toml, "[{section}]\nhost_name = {host_name:?}\nports = {ports:?}").unwrap();
        }
        if !self.more.contains("[community]") {
            toml.push_str("[community]\nservers = [\"sandbox\"]\n");
        }
        let (folder_text, admin) = (folder.display(), &self.admin);
        writeln!(
            toml,
            "[tls]\ncertificate = \"{folder_text}/server.pem\"\nprivate_key = \"{folder_text}/server.key\"\n\
             [admin]\nlisten = \"{admin}\"\ntoken_file = \"{folder_text}/token\"\n{}",
            self.more
        )
        .unwrap();
        fs::write(folder.join("stconfig.toml"), toml).unwrap();
    }
}

/// Reloads, and expects that it is accepted and that every listener is up.
async fn reload(program: &Program, database: &Database<'_>) {
    database.write(program.folder.path());
    let answer = program.reload("open sesame").await;
    assert_eq!(answer.status, 200, "{}", text(&answer.body));
    for listener in program.status().await["listeners"].as_array().unwrap() {
        assert_eq!(listener["state"], "up", "{listener}");
    }
}

/// The listeners of a port number in the status, by address.
async fn listeners(program: &Program, port: u16) -> Vec<Value> {
    let status = program.status().await;
    let mut found: Vec<Value> =
        status["listeners"].as_array().unwrap().iter().filter(|l| l["port"] == port).cloned().collect();
    found.sort_by_key(|listener| listener["address"].as_str().unwrap().to_owned());
    found
}

fn says_nothing_of_itself(program: &Program) {
    let log = program.log.lock();
    assert!(!log.contains("in use by"), "{log}");
}

fn is_open(address: SocketAddr) -> bool {
    std::net::TcpStream::connect(address).is_ok()
}

fn at(last: u8, port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, last], port))
}

/// Local addresses of the sockets that listen on a port in this network namespace, as the kernel writes them.
fn listening(port: u16) -> Vec<String> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|table| fs::read_to_string(table).unwrap_or_default());
    let end = format!(":{port:04X}");
    let mut found: Vec<String> = tables
        .iter()
        .flat_map(|table| table.lines().skip(1))
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|fields| fields[3] == "0A" && fields[1].ends_with(&end))
        .map(|fields| fields[1].to_owned())
        .collect();
    found.dedup();
    found
}

/// 127.0.0.`last` and a port, as the kernel writes them.
fn as_the_kernel_writes(last: u8, port: u16) -> String {
    format!("{last:02X}00007F:{port:04X}")
}

/// A name server of the test's own answers `Answer`, after the time-outs of `options`.
fn name_server(folder: &Path, options: &str, answer: Answer) -> Dns {
    let file = folder.join("resolv.conf");
    fs::write(&file, format!("nameserver 127.0.0.1\noptions {options}\n")).unwrap();
    namespaces::run(&format!("mount --bind {} /etc/resolv.conf", file.display()));
    Dns::start(answer)
}

/// These lines are the machine's /etc/hosts.
fn hosts(folder: &Path, lines: &str) {
    let file = folder.join("hosts");
    fs::write(&file, lines).unwrap();
    namespaces::run(&format!("mount --bind {} /etc/hosts", file.display()));
}

async fn unresolved(program: &Program) -> f64 {
    program.metric("sametime_mux_listener_failures_total{reason=\"unresolved\"}").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_does_not_resolve_opens_nothing_and_opens_where_it_says_once_it_does() {
    if !namespaces::inside("a_name_that_does_not_resolve_opens_nothing_and_opens_where_it_says_once_it_does") {
        return;
    }
    let setup = Setup::new("");
    let dns = name_server(setup.folder.path(), "timeout:1 attempts:1", Answer::Failure);
    let (http, mut database) = (setup.http, Database::of(&setup));
    database.set(HTTP, "chat.test", &[http]).write(setup.folder.path());
    let program = setup.start();
    // It is tried again, and again.
    in_time("more look-ups", async {
        while unresolved(&program).await < 3.0 {
            assert_eq!(listening(http), Vec::<String>::new(), "no address was found, so there is no port");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    let shown = listeners(&program, http).await;
    assert_eq!((shown.len(), &shown[0]["state"], &shown[0]["address"]), (1, &"down".into(), &"chat.test".into()));
    assert!(shown[0]["error"].as_str().unwrap().contains("chat.test"), "{shown:?}");
    assert_eq!(program.request("GET /readyz").await.status, 200, "the Community port is up");

    dns.set(Answer::Address([127, 0, 0, 2].into()));
    wait_until("the port", || is_open(at(2, http))).await;
    assert_eq!(listening(http), [as_the_kernel_writes(2, http)]);
    let shown = listeners(&program, http).await;
    assert_eq!((shown.len(), &shown[0]["state"], &shown[0]["address"]), (1, &"up".into(), &"127.0.0.2".into()));

    reload(&program, database.set(HTTP, "", &[])).await;
    assert_eq!(listening(http), Vec::<String>::new(), "a port that is no longer in the file is closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_server_that_fails_during_a_reload_changes_no_address() {
    if !namespaces::inside("a_name_server_that_fails_during_a_reload_changes_no_address") {
        return;
    }
    let setup = Setup::new("");
    let dns = name_server(setup.folder.path(), "timeout:1 attempts:1", Answer::Address([127, 0, 0, 2].into()));
    let (raw, http, mut database) = (setup.raw, setup.http, Database::of(&setup));
    database.set(CLIENTS, "chat.test", &[raw]).set(HTTP, "chat.test", &[http]).write(setup.folder.path());
    let program = setup.start();
    let mut before = Client::connect(Transport::Raw, at(2, raw)).await;
    before.log_in("bob").await;
    let channel = before.open_chat("echo").await;

    // The name fails, and another port of it is wanted, too.
    dns.set(Answer::Failure);
    let [more] = support::program::free_ports();
    database.more = "[limits]\ncapacity = 77\n";
    reload(&program, database.set(HTTP, "chat.test", &[http, more])).await;
    assert_eq!(program.status().await["sessions"]["capacity"], 77, "it is in force");
    for port in [raw, http, more] {
        assert_eq!(listening(port), [as_the_kernel_writes(2, port)]);
    }
    program.wait_for_log("its last addresses stay in force");
    let shown = listeners(&program, raw).await;
    assert!(shown[0]["error"].as_str().unwrap().contains("chat.test"), "the status says so: {shown:?}");
    assert_eq!(program.request("GET /readyz").await.status, 200);
    before.send_text(channel, b"still here").await;
    assert_eq!(before.recv().await.expect("an echo").text(), b"still here");

    // A name of which no address was ever known: nothing changes.
    database.set(CLIENTS, "other.test", &[raw]).write(program.folder.path());
    let answer = program.reload("open sesame").await;
    assert_eq!(answer.status, 422);
    assert!(text(&answer.body).contains("other.test"), "{}", text(&answer.body));
    assert_eq!(listening(raw), [as_the_kernel_writes(2, raw)]);

    // The name is back, elsewhere: what the file says is in force without another reload.
    dns.set(Answer::Address([127, 0, 0, 3].into()));
    wait_until("the port", || is_open(at(3, raw))).await;
    in_time("the old addresses to close", async {
        while listening(raw) != [as_the_kernel_writes(3, raw)] {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let shown = listeners(&program, raw).await;
    assert_eq!((shown.len(), &shown[0]["address"], &shown[0]["error"]), (1, &"127.0.0.3".into(), &Value::Null));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_moves_to_another_section_and_two_are_swapped_without_a_gap() {
    let setup = Setup::new("");
    let (raw, http, https, mut database) = (setup.raw, setup.http, setup.https, Database::of(&setup));
    database.write(setup.folder.path());
    let program = setup.start();
    let knockers = Knockers::start(&[local(raw), local(http), local(https)]).await;
    for _ in 0..5 {
        // Swapped.
        reload(&program, database.set(CLIENTS, "127.0.0.1", &[http]).set(HTTP, "127.0.0.1", &[raw])).await;
        assert_eq!(listeners(&program, raw).await[0]["section"], HTTP);
        knockers.go_on().await;
        // Moved: all of them in one section.
        reload(&program, database.set(CLIENTS, "127.0.0.1", &[]).set(HTTP, "127.0.0.1", &[raw, http])).await;
        knockers.go_on().await;
        // And back.
        reload(&program, database.set(CLIENTS, "127.0.0.1", &[raw]).set(HTTP, "127.0.0.1", &[http])).await;
        knockers.go_on().await;
    }
    let shown = listeners(&program, raw).await;
    assert_eq!((shown.len(), &shown[0]["section"]), (1, &CLIENTS.into()));
    assert!(shown[0]["accepted_total"].as_u64().unwrap() > 0, "the count goes with the port: {shown:?}");
    knockers.stop().await;
    says_nothing_of_itself(&program);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_name_changes_between_every_address_and_one_without_a_gap() {
    let setup = Setup::new("");
    let (raw, http, mut database) = (setup.raw, setup.http, Database::of(&setup));
    database.write(setup.folder.path());
    let program = setup.start();
    let knockers = Knockers::start(&[local(raw), local(http)]).await;
    for every in ["", "0.0.0.0", "::"] {
        reload(&program, database.set(CLIENTS, every, &[raw]).set(HTTP, every, &[http])).await;
        knockers.go_on().await;
        assert!(is_open(at(2, raw)) && is_open(at(2, http)), "every address");
        assert_eq!(listeners(&program, raw).await.len(), 1, "one listener in the file, one in the status");
        // One section goes back alone, then the other.
        for section in [CLIENTS, HTTP] {
            let port = if section == CLIENTS { raw } else { http };
            reload(&program, database.set(section, "127.0.0.1", &[port])).await;
            knockers.go_on().await;
            assert!(!is_open(at(2, port)), "127.0.0.1 alone");
        }
    }
    // From one kind of every address to another, without the address alone in between.
    for every in ["", "0.0.0.0", "::", "0.0.0.0", ""] {
        reload(&program, database.set(CLIENTS, every, &[raw])).await;
        knockers.go_on().await;
        assert!(is_open(at(2, raw)));
    }
    // And closed, with what was held for it.
    reload(&program, database.set(CLIENTS, "", &[])).await;
    assert_eq!(listening(raw), Vec::<String>::new());
    knockers.stop_at(local(http)).await;
    says_nothing_of_itself(&program);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_is_on_its_way_is_completed_when_every_address_becomes_one() {
    if !namespaces::inside("a_handshake_that_is_on_its_way_is_completed_when_every_address_becomes_one") {
        return;
    }
    // Another network, and a cable to it on which a handshake takes a while.
    let away = Process::start(Command::new("unshare").args(["--net", "sleep", "600"]));
    let there = format!("nsenter --target {} --net", away.0.id());
    let network = |process: &str| fs::read_link(format!("/proc/{process}/ns/net")).unwrap();
    wait_until("its network", || network(&away.0.id().to_string()) != network("self")).await;
    namespaces::run(&format!(
        "ip link add near type veth peer name far netns {}; ip addr add 192.0.2.1/30 dev near; ip link set near up; \
         {there} ip addr add 192.0.2.2/30 dev far; {there} ip link set far up",
        away.0.id()
    ));
    let slowly = "root tbf rate 24kbit burst 1600 latency 10s";
    let slow = format!("tc qdisc add dev near {slowly}; {there} tc qdisc add dev far {slowly}");
    if !has("tc", "iproute2") || !Command::new("sh").args(["-ec", &slow]).status().unwrap().success() {
        return support::skip("tc qdisc tbf", "not in this kernel");
    }
    let setup = Setup::new("");
    let (raw, mut database) = (setup.raw, Database::of(&setup));
    database.write(setup.folder.path());
    let program = setup.start();
    reload(&program, database.set(CLIENTS, "", &[raw])).await;
    let knockers = RemoteKnockers::start(away.0.id(), SocketAddr::from(([192, 0, 2, 1], raw)));
    for _ in 0..5 {
        for host_name in ["192.0.2.1", ""] {
            knockers.go_on().await;
            reload(&program, database.set(CLIENTS, host_name, &[raw])).await;
        }
    }
    knockers.stop();
    says_nothing_of_itself(&program);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_endpoint_moves_to_another_address_of_its_port_without_a_gap() {
    let setup = Setup::new("");
    let (admin, raw, mut database) = (setup.admin, setup.raw, Database::of(&setup));
    database.write(setup.folder.path());
    let program = setup.start();
    let knockers = Knockers::start(&[local(admin)]).await;
    for address in ["0.0.0.0", "127.0.0.1", "[::]", "127.0.0.1"] {
        database.admin = format!("{address}:{admin}");
        database.write(program.folder.path());
        let answer = program.reload("open sesame").await;
        assert_eq!(answer.status, 200, "the request that moves the endpoint is answered: {}", text(&answer.body));
        knockers.go_on().await;
        assert_eq!(is_open(at(2, admin)), address != "127.0.0.1", "{address}");
        // Who may read depends on where it listens now, not on where it did.
        let read = program.request("GET /metrics").await.status;
        assert_eq!(read, if address == "127.0.0.1" { 200 } else { 401 }, "{address}");
    }
    knockers.stop().await;
    // It takes a client port's place, and the other way round.
    let [new] = support::program::free_ports();
    database.set(CLIENTS, "127.0.0.1", &[admin]).admin = format!("127.0.0.1:{new}");
    database.write(program.folder.path());
    assert_eq!(program.reload("open sesame").await.status, 200);
    Client::connect(Transport::Raw, local(admin)).await.log_in("bob").await;
    assert!(!is_open(local(raw)));
    says_nothing_of_itself(&program);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_gives_one_address_twice_starts() {
    if !namespaces::inside("a_name_that_gives_one_address_twice_starts") {
        return;
    }
    let setup = Setup::new("");
    hosts(
        setup.folder.path(),
        "127.0.0.2 chat.test\n127.0.0.2 chat.test alias\n127.0.0.1 localhost\n127.0.0.1 localhost\n",
    );
    let (raw, http, mut database) = (setup.raw, setup.http, Database::of(&setup));
    database.set(CLIENTS, "chat.test", &[raw]).set(HTTP, "localhost", &[http]).write(setup.folder.path());
    let program = setup.start();
    Client::connect(Transport::Raw, at(2, raw)).await.log_in("bob").await;
    Client::connect(Transport::Raw, local(http)).await.log_in("bob").await;
    let shown = listeners(&program, raw).await;
    assert_eq!((shown.len(), &shown[0]["state"]), (1, &"up".into()), "{shown:?}");
    says_nothing_of_itself(&program);

    // One address twice, by a name in one section and by itself in another: that is the file's fault, and it says so.
    let answer = {
        database.set(HTTP, "127.0.0.2", &[raw]).write(program.folder.path());
        program.reload("open sesame").await
    };
    let shown = program.status().await;
    let says = format!("{}{shown}", text(&answer.body));
    assert!(says.contains(&format!("port {raw} of 127.0.0.2 is in [{CLIENTS}], too")), "{says}");
    Client::connect(Transport::Raw, at(2, raw)).await.log_in("bob").await;
    says_nothing_of_itself(&program);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_look_up_delays_neither_health_nor_the_end() {
    if !namespaces::inside("a_slow_look_up_delays_neither_health_nor_the_end") {
        return;
    }
    // A look-up takes 8 s.
    let setup = Setup::new("");
    let _dns = name_server(setup.folder.path(), "timeout:4 attempts:2", Answer::Silence);
    let (http, mut database) = (setup.http, Database::of(&setup));
    database.write(setup.folder.path());
    let mut program = setup.start();
    database.set(HTTP, "slow.test", &[http]).write(program.folder.path());
    let is_over = |program: &Program| program.log.lock().contains("configuration reloaded");
    program.signal("HUP");
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(program.request("GET /healthz").await.status, 200);
    }
    assert!(!is_over(&program), "the answers come while it looks up");
    assert!(is_open(local(http)), "and what is there stays meanwhile");
    program.signal("TERM");
    assert_eq!(program.exit_code(), Some(0));
    assert!(!is_over(&program), "it ends while it looks up:\n{}", program.log.lock());

    // While it starts, too.
    let setup = Setup::new("");
    let mut database = Database::of(&setup);
    database.set(HTTP, "slow.test", &[setup.http]).write(setup.folder.path());
    let mut program = setup.spawn();
    program.wait_for_log("sametime-mux version");
    program.signal("TERM");
    assert_eq!(program.exit_code(), Some(0));
    assert!(!program.log.lock().contains(" ready "), "{}", program.log.lock());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_listeners_of_one_port_number_are_two_in_status_and_metrics() {
    if !namespaces::inside("two_listeners_of_one_port_number_are_two_in_status_and_metrics") {
        return;
    }
    let setup = Setup::new("");
    hosts(setup.folder.path(), "127.0.0.1 localhost\n127.0.0.1 both.test\n127.0.0.3 both.test\n");
    let (raw, http, mut database) = (setup.raw, setup.http, Database::of(&setup));
    // One port number in two sections, and on two addresses of one.
    let held = std::net::TcpListener::bind(at(3, http)).unwrap();
    database.set(CLIENTS, "127.0.0.1", &[raw]).set(HTTP, "both.test", &[http]).set(HTTPS, "127.0.0.2", &[raw]);
    database.write(setup.folder.path());
    let program = setup.start();
    let mut clients = Vec::new();
    for to in [local(raw), local(raw), at(2, raw)] {
        let mut client = Client::connect(Transport::Raw, to).await;
        client.log_in("bob").await;
        clients.push(client);
    }
    let shown = listeners(&program, raw).await;
    let sessions: Vec<_> = shown.iter().map(|l| (l["address"].as_str().unwrap(), l["sessions"].as_u64())).collect();
    assert_eq!(sessions, [("127.0.0.1", Some(2)), ("127.0.0.2", Some(1))]);
    assert_eq!(program.status().await["sessions"]["total"], 3);
    let metrics = text(&program.request("GET /metrics").await.body);
    let has = |line: &str| assert!(metrics.lines().any(|have| have == line), "{line} in\n{metrics}");
    has(&format!("sametime_mux_sessions{{port=\"{raw}\",transport=\"raw\"}} 3"));
    has(&format!("sametime_mux_listener_sessions{{address=\"127.0.0.1\",port=\"{raw}\"}} 2"));
    has(&format!("sametime_mux_listener_sessions{{address=\"127.0.0.2\",port=\"{raw}\"}} 1"));

    // Of two addresses of one section, one is down: that is not up.
    let shown = listeners(&program, http).await;
    let states: Vec<_> = shown.iter().map(|l| (l["address"].as_str().unwrap(), l["state"].as_str().unwrap())).collect();
    assert_eq!(states, [("127.0.0.1", "up"), ("127.0.0.3", "down")]);
    has(&format!("sametime_mux_listener_up{{section=\"{HTTP}\",port=\"{http}\"}} 0"));
    has(&format!("sametime_mux_listener_address_up{{section=\"{HTTP}\",address=\"127.0.0.1\",port=\"{http}\"}} 1"));
    has(&format!("sametime_mux_listener_address_up{{section=\"{HTTP}\",address=\"127.0.0.3\",port=\"{http}\"}} 0"));
    drop(held);
    in_time("both to be up", async {
        let up = format!("sametime_mux_listener_up{{section=\"{HTTP}\",port=\"{http}\"}}");
        while program.metric(&up).await < 1.0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    // Sessions stay with the listener that serves their address after it.
    reload(&program, database.set(CLIENTS, "", &[raw]).set(HTTPS, "", &[])).await;
    let shown = listeners(&program, raw).await;
    assert_eq!((shown.len(), &shown[0]["sessions"]), (1, &3.into()), "{shown:?}");
    drop(clients);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_process_that_is_named_as_the_holder_is_the_one_that_is_in_the_way() {
    // The port number is this program's own, too, on another address.
    let setup = Setup::new("");
    let (raw, mut database) = (setup.raw, Database::of(&setup));
    let held = std::net::TcpListener::bind(at(2, raw)).unwrap();
    database.set(HTTP, "127.0.0.2", &[raw]).write(setup.folder.path());
    let program = setup.start();
    let shown = listeners(&program, raw).await;
    assert_eq!((&shown[0]["state"], &shown[1]["state"]), (&"up".into(), &"down".into()), "{shown:?}");
    let error = shown[1]["error"].as_str().unwrap();
    assert!(error.contains(&format!("(process {})", std::process::id())), "{error}");
    // From one address to every one while another process has a part of it.
    database.set(CLIENTS, "", &[raw]).set(HTTP, "", &[]).write(program.folder.path());
    let answer = program.reload("open sesame").await;
    let says = text(&answer.body);
    assert_eq!(answer.status, 422, "{says}");
    assert!(says.contains(&format!("(process {})", std::process::id())), "{says}");
    assert!(!says.contains(&format!("(process {})", program.child.id())), "{says}");
    Client::connect(Transport::Raw, local(raw)).await.log_in("bob").await;
    drop(held);
    // Another multiplexer, whose sockets are of a kind that the kernel lets this user's processes share.
    let other = Setup::new("");
    let mut of_other = Database::of(&other);
    of_other.set(CLIENTS, "127.0.0.2", &[raw]).write(other.folder.path());
    let other = other.start();
    let answer = program.reload("open sesame").await;
    let says = text(&answer.body);
    assert_eq!(answer.status, 422, "{says}");
    assert!(says.contains(&format!("sametime-mux (process {})", other.child.id())), "{says}");
    drop(other);
    reload(&program, &database).await;
    let free = free_address();
    assert!(is_open(at(2, raw)) && !is_open(free));
}
