//! The trunk: clients of a near end reach the Community server through a far end, both as an admin configures them.
#![allow(clippy::cast_possible_truncation, clippy::unwrap_used, missing_docs, unreachable_pub)]

use std::{net::SocketAddr, path::Path};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair};
use sametime_mux::{net::Section, server::Server};
use support::{
    client::{Client, Transport},
    community::Community,
    frames, in_time,
    mux::{self, Mux},
    wait_until,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

#[path = "trunk/hostile.rs"]
mod hostile;
#[path = "trunk/stock.rs"]
mod stock;
mod support;

/// OpenSSL takes a certificate for a self-signed one if its name is that of the authority.
fn named(name: &str) -> DistinguishedName {
    let mut named = DistinguishedName::new();
    named.push(DnType::CommonName, name);
    named
}

/// The files of a private authority, and of certificates that it has signed.
fn make_certificates(folder: &Path, authority: &str, names: &[&str]) {
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name = named(authority);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    std::fs::write(folder.join(authority), ca.pem()).unwrap();
    for name in names {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        params.distinguished_name = named(name);
        let certificate = params.signed_by(&key, &ca).unwrap();
        std::fs::write(folder.join(format!("{name}.pem")), certificate.pem()).unwrap();
        std::fs::write(folder.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }
}

/// A far end in front of `target`. `certificates` has its files; without it, there is no TLS.
async fn far_end(target: SocketAddr, certificates: Option<&Path>) -> Mux {
    let folder = tempfile::tempdir().unwrap();
    let tls = certificates.map_or("tls = false".to_owned(), |at| format!("client_ca = \"{}/ca.pem\"", at.display()));
    let toml = format!(
        "[community]\nservers = [\"{target}\"]\n[trunk_listener]\nports = [1]\ntarget = \"{target}\"\n{tls}\n\
         [limits]\ndrain_timeout = \"1m\"\n"
    );
    let mut settings = mux::settings(&toml, folder.path());
    if let Some(at) = certificates {
        settings.ingress.tls.certificate = at.join("far.pem");
        settings.ingress.tls.private_key = at.join("far.key");
    }
    Mux { server: Server::start(settings).await.unwrap(), folder }
}

/// A near end of `far`, which asks it for `target`.
async fn near_end(far: SocketAddr, target: SocketAddr, more: &str, trunk: &str) -> Mux {
    mux::start(&format!(
        "[community]\nservers = [\"{far}\"]\nlink = \"trunk\"\n{more}\n[trunk]\ntarget = \"{target}\"\n{trunk}\n"
    ))
    .await
}

async fn chat(mux: &Mux, transport: Transport) {
    let mut client = Client::connect(transport, mux.port(Section::HttpTunneledClientConnections)).await;
    client.log_in("bob").await;
    let channel = client.open_chat("echo").await;
    for text in [&b"one"[..], b"two", &[b'x'; 60_000]] {
        client.send_text(channel, text).await;
        assert_eq!(client.recv().await.unwrap().text(), text, "{transport:?}");
    }
    client.log_out().await;
}

#[tokio::test]
async fn clients_of_every_transport_talk_through_a_trunk_with_certificates_at_both_ends() {
    let folder = tempfile::tempdir().unwrap();
    make_certificates(folder.path(), "ca.pem", &["far", "near"]);
    let community = Community::start_echo().await;
    let far = far_end(community.address, Some(folder.path())).await;
    let at = folder.path().display();
    let files = format!(
        "certificate_authority = \"{at}/ca.pem\"\ncertificate = \"{at}/near.pem\"\nprivate_key = \"{at}/near.key\""
    );
    let near = near_end(far.port(Section::TrunkListener), community.address, "", &files).await;
    for transport in Transport::ALL {
        in_time("a conversation", chat(&near, transport)).await;
    }
    assert!(near.metric("sametime_mux_trunk_connections{end=\"near\"}").await >= 1.0);
    in_time("the end of the streams", async {
        while far.metric("sametime_mux_trunk_streams{end=\"far\"}").await > 0.0 {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_near_end_without_the_right_certificate_is_shut_out() {
    let folder = tempfile::tempdir().unwrap();
    make_certificates(folder.path(), "ca.pem", &["far"]);
    make_certificates(folder.path(), "other.pem", &["stranger"]);
    let community = Community::start_echo().await;
    let far = far_end(community.address, Some(folder.path())).await;
    let at = folder.path().display();
    let stranger = format!("certificate = \"{at}/stranger.pem\"\nprivate_key = \"{at}/stranger.key\"");
    for own in ["", &stranger] {
        let trunk = format!("certificate_authority = \"{at}/ca.pem\"\n{own}");
        let near = near_end(far.port(Section::TrunkListener), community.address, "", &trunk).await;
        let mut client = Client::connect(Transport::Raw, near.raw()).await;
        client.send_frame(&frames::handshake()).await;
        assert!(in_time("a refusal", client.recv()).await.is_some());
    }
    let refused = "sametime_mux_trunk_connections_closed_total{reason=\"client_certificate\"}";
    assert!(far.metric(refused).await >= 2.0);
    assert_eq!(community.sessions(), 0);
}

#[tokio::test]
async fn a_request_for_another_target_is_refused_and_the_server_is_down() {
    let (community, other) = (Community::start_echo().await, Community::start_echo().await);
    let far = far_end(community.address, None).await;
    let near = near_end(far.port(Section::TrunkListener), other.address, "", "tls = false").await;
    let mut client = Client::connect(Transport::Raw, near.raw()).await;
    client.send_frame(&frames::handshake()).await;
    assert!(in_time("a refusal", client.recv()).await.is_some());
    assert!(far.metric("sametime_mux_trunk_streams_refused_total{reason=\"target\"}").await >= 1.0);
    let status = String::from_utf8(near.get("/api/status").await.body).unwrap();
    assert!(status.contains("refuses the target (403)"), "{status}");
}

#[tokio::test]
async fn the_proxy_header_is_the_first_thing_that_the_target_gets() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = listener.local_addr().unwrap();
    let far = far_end(target, None).await;
    let near = near_end(far.port(Section::TrunkListener), target, "send_proxy_protocol = true", "tls = false").await;
    let mut client = TcpStream::connect(near.raw()).await.unwrap();
    let own = client.local_addr().unwrap();
    client.write_all(&frames::handshake().bytes()).await.unwrap();
    in_time("the header", async {
        loop {
            // Checks of both ends connect, too.
            let (mut tcp, _) = listener.accept().await.unwrap();
            let mut header = [0; 28];
            let read = tcp.read_exact(&mut header);
            if tokio::time::timeout(std::time::Duration::from_millis(300), read).await.is_ok_and(|read| read.is_ok())
                && header[24..26] == own.port().to_be_bytes()
            {
                assert_eq!(header[..12], *b"\r\n\r\n\0\r\nQUIT\n");
                assert_eq!(header[16..20], [127, 0, 0, 1]);
                break;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_trunk_that_breaks_ends_its_sessions_with_a_reason_and_comes_back() {
    let community = Community::start_echo().await;
    let far = far_end(community.address, None).await;
    let address = far.port(Section::TrunkListener);
    // A relay between the two ends, which can be cut.
    let relay = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let between = relay.local_addr().unwrap();
    let cut = tokio::sync::watch::Sender::new(0);
    let cuts = cut.subscribe();
    let relaying = tokio::spawn(async move {
        loop {
            let (mut near, _) = relay.accept().await.unwrap();
            let mut cuts = cuts.clone();
            cuts.mark_unchanged();
            tokio::spawn(async move {
                let mut far = TcpStream::connect(address).await.unwrap();
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => (),
                    _ = cuts.changed() => (),
                }
            });
        }
    });
    let near = near_end(between, community.address, "", "tls = false").await;
    let mut clients = Vec::new();
    for number in 0..20 {
        let mut client = Client::connect(Transport::Raw, near.raw()).await;
        client.log_in(&format!("user{number}")).await;
        clients.push(client);
    }
    cut.send_replace(1);
    for client in &mut clients {
        assert_eq!(in_time("a farewell message", client.recv()).await.unwrap().reason(), 0x8000_0221);
    }
    wait_until("nobody is left", || near.server.sessions() == 0).await;
    in_time("the server is up again", async {
        while near.metric_sum("sametime_mux_community_up").await < 1.0 {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    })
    .await;
    in_time("a conversation", chat(&near, Transport::Raw)).await;
    relaying.abort();
}

#[tokio::test]
async fn a_far_end_that_is_stopped_lets_its_sessions_go_on_and_takes_no_new_ones() {
    let community = Community::start_echo().await;
    let far = far_end(community.address, None).await;
    let near = near_end(far.port(Section::TrunkListener), community.address, "", "tls = false").await;
    let mut client = Client::connect(Transport::Raw, near.raw()).await;
    client.log_in("bob").await;
    let channel = client.open_chat("echo").await;
    let server = far.server.clone();
    let draining = tokio::spawn(async move { server.drain().await });
    for _ in 0..20 {
        client.send_text(channel, b"still here").await;
        assert_eq!(in_time("an echo", client.recv()).await.unwrap().text(), b"still here");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert!(!draining.is_finished());
    client.log_out().await;
    drop(client);
    in_time("the drain", draining).await.unwrap();
}

#[tokio::test]
async fn a_client_that_reads_nothing_stalls_nobody_and_loses_nothing() {
    let community = Community::start_echo().await;
    let far = far_end(community.address, None).await;
    let near = near_end(far.port(Section::TrunkListener), community.address, "", "tls = false\nconnections = 1").await;
    let mut stalled = Client::connect(Transport::Raw, near.raw()).await;
    stalled.log_in("ann").await;
    let channel = stalled.open_chat("echo").await;
    let (mut from, mut into) = stalled.split();
    let text = vec![7; 50_000];
    let message = frames::message(channel, &text).bytes();
    // It says more than all buffers on the way take, and does not read the echoes.
    let mut said = 0;
    let mut at = 0;
    let pause = std::time::Duration::from_secs(1);
    while let Ok(written) = tokio::time::timeout(pause, into.write(&message[at..])).await {
        at += written.unwrap();
        if at == message.len() {
            (said, at) = (said + 1, 0);
        }
        assert!(said < 2_000, "it is never stopped");
    }
    let mut others = tokio::task::JoinSet::new();
    for n in 0..100 {
        let to = near.raw();
        others.spawn(async move {
            let mut client = Client::connect(Transport::Raw, to).await;
            client.log_in(&format!("user-{n}")).await;
            let channel = client.open_chat("echo").await;
            for said in 0..20 {
                client.send_text(channel, &[n; 1_000]).await;
                assert_eq!(client.recv().await.unwrap().text(), [n; 1_000], "{said}");
            }
        });
    }
    while let Some(other) = in_time("the others", others.join_next()).await {
        other.unwrap();
    }
    // Then it reads, and can say the rest of what it began.
    let reading = tokio::spawn(async move {
        for n in 0..=said {
            assert_eq!(in_time("an echo", frames::Frame::read(&mut from)).await.unwrap().text(), text, "{n}");
        }
    });
    into.write_all(&message[at..]).await.unwrap();
    reading.await.unwrap();
    println!("{said} messages were on the way");
}

/// `SAMETIME_MUX_STREAMS` sets how many.
#[tokio::test]
async fn many_short_streams_over_one_trunk_lose_nothing() {
    let streams: usize =
        std::env::var("SAMETIME_MUX_STREAMS").map_or(6_000, |streams| streams.parse().expect("a number"));
    let community = Community::start_echo().await;
    let far = far_end(community.address, None).await;
    let near = near_end(far.port(Section::TrunkListener), community.address, "", "tls = false\nconnections = 1").await;
    let address = near.raw();
    let workers: Vec<_> = (0..20)
        .map(|worker| {
            tokio::spawn(async move {
                for number in (worker..streams).step_by(20) {
                    let mut client = Client::connect(Transport::Raw, address).await;
                    client.log_in("bob").await;
                    let channel = client.open_chat("echo").await;
                    client.send_text(channel, b"hello").await;
                    assert_eq!(client.recv().await.unwrap().text(), b"hello", "{number}");
                    // Some leave while the server still sends.
                    if number % 3 == 0 {
                        client.send_text(channel, &[7; 5_000]).await;
                    } else if number % 3 == 1 {
                        client.log_out().await;
                    }
                }
            })
        })
        .collect();
    for worker in workers {
        worker.await.unwrap();
    }
    for end in [&near, &far] {
        let closed = end.metric_sum("sametime_mux_trunk_connections_closed_total").await;
        assert_eq!(closed, 0.0, "no connection of the trunk has ended");
    }
}
