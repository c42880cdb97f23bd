//! Programs of other projects with the multiplexer: libmeanwhile (direct and through proxies), tshark's dissector,
//! openssl and curl. Tests of a missing program are skipped and reported.
#![allow(clippy::cast_possible_truncation, clippy::unwrap_used)]

mod support;

use std::process::{Command, Stdio};

use sametime_mux::{net::Section, sandbox::Sandbox};
use support::{
    client::{Client, Transport},
    community::Community,
    frames::{self, Frame},
    has, in_time, mux,
    peer::{CHAT, Process, assert_chat, meanwhile, proxy, run, run_meanwhile, text},
    skip, wait_until,
};

#[tokio::test]
async fn libmeanwhile_logs_in_and_chats_on_every_section() {
    if meanwhile().is_none() {
        return;
    }
    let mux = mux::start("").await;
    for section in Section::ALL {
        assert_chat(run_meanwhile(&[], mux.port(section), "bob", "secret", CHAT).await);
    }
    assert!((mux.metric("sametime_mux_login_seconds_count").await - 3.0).abs() < 0.5);
    // The client logged out of each session.
    assert!((mux.metric(r#"sametime_mux_sessions_closed_total{reason="log_out"}"#).await - 3.0).abs() < 0.5);
}

#[tokio::test]
async fn libmeanwhile_clients_see_each_other_and_chat() {
    if meanwhile().is_none() {
        return;
    }
    let mux = mux::start("").await;
    let raw = mux.raw();
    let ann = tokio::spawn(async move { run_meanwhile(&[], raw, "ann", "x", &["wait", "2"]).await });
    let steps = &["aware", "ann", "resolve", "ann", "resolve", "nobody", "say", "ann", "one", "say", "ann", "two"];
    let (code, said) = run_meanwhile(&[], mux.raw(), "bob", "x", steps).await;
    assert_eq!(code, Some(0), "{said}");
    for line in ["aware ann on line", "resolved ann 0x00000000: ann", "heard ann: one", "heard ann: two"] {
        assert!(said.lines().any(|l| l == line), "{line} in\n{said}");
    }
    assert!(said.lines().any(|l| l.starts_with("resolved nobody 0x8") && l.ends_with(':')), "{said}");
    let (code, said) = in_time("ann's end", ann).await.unwrap();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("heard bob: one\nheard bob: two\n"), "{said}");
}

#[tokio::test]
async fn libmeanwhile_is_refused_with_a_reason_in_its_own_protocol() {
    if meanwhile().is_none() {
        return;
    }
    let mux = mux::start("").await;
    let (_, said) = run_meanwhile(&[], mux.raw(), "bob", "wrong", &[]).await;
    assert!(said.contains("stopped 0x80000211"), "log-in refused: {said}");
    let (_, said) = run_meanwhile(&[], mux.raw(), "bob", "x", &["say", "nobody", "hi"]).await;
    assert!(said.contains("closed nobody 0x8000"), "{said}");
    let mux = mux::start("[limits]\ncapacity = 1\n").await;
    let mut held = Client::connect(Transport::Raw, mux.raw()).await;
    held.log_in("ann").await;
    let (_, said) = run_meanwhile(&[], mux.raw(), "bob", "x", &[]).await;
    assert!(said.contains("stopped 0x8000020b"), "full: {said}");
}

#[tokio::test]
async fn libmeanwhile_works_through_tinyproxy() {
    if meanwhile().is_none() || !has("tinyproxy", "tinyproxy-bin") {
        return;
    }
    let mux = mux::start("").await;
    let folder = tempfile::tempdir().unwrap();
    let (_proxy, at) = proxy(|port| {
        let file = folder.path().join("tinyproxy.conf");
        std::fs::write(&file, format!("Port {port}\nListen 127.0.0.1\nAllow 127.0.0.1\n")).unwrap();
        let mut command = Command::new("tinyproxy");
        command.arg("-d").arg("-c").arg(file);
        command
    })
    .await;
    let https = mux.port(Section::HttpsTunneledClientConnections);
    for to in [https, mux.raw()] {
        assert_chat(run_meanwhile(&["--connect", &at.to_string()], to, "bob", "secret", CHAT).await);
    }
}

#[tokio::test]
async fn libmeanwhile_works_through_microsocks() {
    if meanwhile().is_none() || !has("microsocks", "microsocks") {
        return;
    }
    let mux = mux::start("").await;
    let (_proxy, at) = proxy(|port| {
        let mut command = Command::new("microsocks");
        command.args(["-i", "127.0.0.1", "-p", &port.to_string()]);
        command
    })
    .await;
    assert_chat(run_meanwhile(&["--socks5", &at.to_string()], mux.raw(), "bob", "secret", CHAT).await);
}

/// A tshark process that captures `ports` on loopback.
struct Capture {
    tshark: Process,
    folder: tempfile::TempDir,
    ports: Vec<u16>,
}

impl Capture {
    async fn start(ports: &[u16]) -> Option<Self> {
        if !has("tshark", "tshark") {
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let (file, errors) = (folder.path().join("capture"), folder.path().join("errors"));
        let filter: Vec<String> = ports.iter().map(|port| format!("tcp port {port}")).collect();
        let mut command = Command::new("tshark");
        command.args(["-i", "lo", "-f", &filter.join(" or "), "-a", "duration:50", "-w"]).arg(&file);
        let child = command.stdout(Stdio::null()).stderr(std::fs::File::create(&errors).unwrap()).spawn().unwrap();
        let mut tshark = Process(child);
        let mut ended = false;
        wait_until("the capture", || {
            ended = tshark.0.try_wait().unwrap().is_some();
            ended || std::fs::metadata(&file).is_ok_and(|file| file.len() > 0)
        })
        .await;
        if ended {
            let why = std::fs::read_to_string(&errors).unwrap();
            skip("tshark", &format!("may not capture here: {}", why.lines().last().unwrap_or_default()));
            return None;
        }
        Some(Self { tshark, folder, ports: ports.to_vec() })
    }

    /// Stops the capture. Returns for each port the names of the Sametime messages there, and those of the messages that
    /// the dissector finds malformed.
    async fn messages(mut self) -> Vec<(Vec<String>, Vec<String>)> {
        // tshark needs a moment to write the last packets to its file.
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        let told = Command::new("kill").args(["-INT", &self.tshark.0.id().to_string()]).status().unwrap();
        assert!(told.success());
        wait_until("tshark's end", || self.tshark.0.try_wait().unwrap().is_some()).await;
        let mut all = Vec::new();
        for port in &self.ports {
            let (of_port, as_sametime) = (format!("tcp.port=={port}"), format!("tcp.port=={port},sametime"));
            let mut command = Command::new("tshark");
            command.arg("-r").arg(self.folder.path().join("capture")).args(["-Y", &of_port, "-d", &as_sametime, "-V"]);
            let decoded = text(&run(&mut command).await.stdout);
            let (mut messages, mut malformed) = (Vec::new(), Vec::<String>::new());
            for line in decoded.lines() {
                if let Some(name) = line.strip_prefix("Sametime Protocol, ") {
                    messages.push(name.to_owned());
                } else if line.starts_with("[Malformed Packet") {
                    malformed.push(messages.last().unwrap().clone());
                }
            }
            all.push((messages, malformed));
        }
        all
    }
}

/// A log-in and a chat with all fields that the dissector expects.
#[tokio::test]
async fn tshark_decodes_a_session_without_a_malformed_frame() {
    let community = Community::start(|mut connection| async move {
        while let Some(frame) = connection.recv().await {
            let answer = match frame.kind {
                frames::HANDSHAKE => {
                    let key = [&[0x12, 0x34, 0x56, 0x78][..], &frames::opaque(&[0xAB; 64])].concat();
                    let body = [&[0, 0x1E, 0, 0x1D][..], &frame.body[8..12], &key].concat();
                    Frame::new(frames::HANDSHAKE_ACK, 0, &body)
                }
                frames::LOGIN => {
                    let (id, bob) = (frames::string(b"A1B2C3"), frames::string(b"bob"));
                    let info = [&id[..], &[0x10, 0x03], &bob, &bob, &[0, 0, 1, 0, 0], &[127, 0, 0, 1]].concat();
                    let privacy = [&frames::string(b"server")[..], &[0; 7]].concat();
                    let status = [&[0, 0x20, 0, 0, 0, 0][..], &frames::string(b"I am here")].concat();
                    Frame::new(frames::LOGIN_ACK, 0, &[info, privacy, status].concat())
                }
                frames::CREATE => {
                    let channel = u32::from_be_bytes(frame.body[4..8].try_into().unwrap());
                    let mut body = frame.body[13..25].to_vec();
                    body.extend(frames::opaque(&[0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 2]));
                    body.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]);
                    Frame::new(frames::ACCEPT, channel, &body)
                }
                frames::DESTROY => return,
                _ => frame,
            };
            connection.send(&answer.bytes()).await;
        }
    })
    .await;
    let mux = mux::start(&community.setting()).await;
    let Some(capture) = Capture::start(&[mux.raw().port()]).await else { return };
    let mut client = Client::connect(Transport::Raw, mux.raw()).await;
    let mut body = [&[0xFF, 0xFF, 0, 0][..], &[0; 8], &[0x10, 0x03], &[127, 0, 0, 1], &[0; 6]].concat();
    body.extend([frames::string(b"host.example"), frames::opaque(&[0xCD; 64]), vec![0]].concat());
    client.send_frame(&Frame::new(frames::HANDSHAKE, 0, &body)).await;
    assert_eq!(client.recv().await.unwrap().kind, frames::HANDSHAKE_ACK);
    client.send_frame(&frames::login("bob", "secret")).await;
    assert_eq!(client.recv().await.unwrap().kind, frames::LOGIN_ACK);
    let channel = client.open_chat("echo").await;
    for said in [&b"hello"[..], &[b'x'; 20_000], b"and good-bye"] {
        client.send_text(channel, said).await;
        assert_eq!(client.recv().await.unwrap().text(), said);
    }
    client.log_out().await;
    client.recv_all().await;
    let [(messages, malformed)] = &capture.messages().await[..] else { panic!("one port") };
    assert_eq!(malformed, &Vec::<String>::new(), "of {messages:?}");
    let begin = ["HANDSHAKE", "HANDSHAKE_ACK", "LOGIN", "LOGIN_ACK", "CHANNEL_CREATE", "CHANNEL_ACCEPT"];
    assert_eq!(messages[..6], begin);
    let sent = messages.iter().filter(|message| message.starts_with("CHANNEL_SEND")).count();
    assert_eq!(sent, 6, "{messages:?}");
    assert_eq!(messages.last().unwrap(), "CHANNEL_DESTROY");
}

/// libmeanwhile omits fields that the dissector expects. The dissector's result is the same with the multiplexer and
/// without.
#[tokio::test]
async fn tshark_sees_the_same_with_the_multiplexer_and_without() {
    if meanwhile().is_none() {
        return;
    }
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let direct = listener.local_addr().unwrap();
    tokio::spawn(async move { Sandbox::new().serve(listener).await });
    let mux = mux::start(&format!("[community]\nservers = [\"{direct}\"]\ncheck_interval = \"0s\"\n")).await;
    let alone = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let without = alone.local_addr().unwrap();
    tokio::spawn(async move { Sandbox::new().serve(alone).await });
    let Some(capture) = Capture::start(&[mux.raw().port(), without.port()]).await else { return };
    assert_chat(run_meanwhile(&[], mux.raw(), "bob", "secret", CHAT).await);
    assert_chat(run_meanwhile(&[], without, "bob", "secret", CHAT).await);
    let [with, without] = &capture.messages().await[..] else { panic!("two ports") };
    assert!(with.0.len() > 12, "{with:?}");
    assert_eq!(with, without);
}

#[tokio::test]
async fn openssl_gets_tls_on_every_port() {
    if !has("openssl", "openssl") {
        return;
    }
    let mux = mux::start("").await;
    for section in Section::ALL {
        for (option, version) in [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")] {
            let to = mux.port(section).to_string();
            let mut command = Command::new("openssl");
            let output = run(command.args(["s_client", option, "-connect", &to]).stdin(Stdio::null())).await;
            let said = text(&output.stdout);
            assert!(
                said.contains(&format!("New, {version}")) || said.contains(&format!("Protocol  : {version}")),
                "{said}"
            );
            assert!(said.contains("BEGIN CERTIFICATE"), "{said}");
        }
        // TLS 1.1 is refused, because it is not safe.
        let mut command = Command::new("openssl");
        let old = ["s_client", "-tls1_1", "-cipher", "ALL:@SECLEVEL=0", "-connect"];
        let output = run(command.args(old).arg(mux.port(section).to_string()).stdin(Stdio::null())).await;
        assert!(!text(&output.stdout).contains("BEGIN CERTIFICATE"));
    }
}

#[tokio::test]
async fn curl_gets_the_pages_for_browsers() {
    if !has("curl", "curl") {
        return;
    }
    let mux = mux::start("").await;
    for section in Section::ALL {
        let port = mux.port(section).port();
        for (url, more, status) in [
            (format!("http://127.0.0.1:{port}/CommunityCBR"), &[][..], "200"),
            (format!("https://127.0.0.1:{port}/CommunityCBR"), &["--insecure"][..], "200"),
            (format!("http://127.0.0.1:{port}/"), &[][..], "404"),
            (format!("http://127.0.0.1:{port}/CommunityCBR"), &["--http1.0"][..], "200"),
        ] {
            let mut command = Command::new("curl");
            let body = tempfile::NamedTempFile::new().unwrap();
            command.args(["--silent", "--show-error", "--noproxy", "*", "--write-out", "%{http_code}", "--output"]);
            let output = run(command.arg(body.path()).args(more).arg(&url)).await;
            assert_eq!(text(&output.stdout), status, "{url} {more:?}: {}", text(&output.stderr));
        }
    }
}
