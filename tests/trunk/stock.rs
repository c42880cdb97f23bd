//! A far end of another project: nghttpx, which takes CONNECT over HTTP/2, and a proxy behind it that connects.

use std::{fs, net::TcpStream, process::Command};

use super::{make_certificates, near_end};
use crate::support::{
    client::{Client, Transport},
    community::Community,
    has, in_time,
    peer::{self, Process},
    wait_until,
};

#[tokio::test]
async fn nghttpx_and_tinyproxy_are_a_far_end_with_certificates_at_both_ends() {
    if !has("nghttpx", "nghttp2-proxy") || !has("tinyproxy", "tinyproxy-bin") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    make_certificates(folder.path(), "ca.pem", &["far", "near"]);
    let community = Community::start_echo().await;
    let target = community.address;
    let (_tinyproxy, proxy) = peer::proxy(|port| {
        let file = folder.path().join("tinyproxy.conf");
        let port_of_target = target.port();
        // The only place that a CONNECT may reach, as trunk_listener.target is.
        fs::write(&file, format!("Port {port}\nListen 127.0.0.1\nTimeout 600\nConnectPort {port_of_target}\n"))
            .unwrap();
        let mut command = Command::new("tinyproxy");
        command.arg("-d").arg("-c").arg(&file);
        command
    })
    .await;
    let far = peer::free_address();
    let at = folder.path();
    let mut command = Command::new("nghttpx");
    command
        .args(["--http2-proxy", "--workers=1", "--no-ocsp", "--conf=/dev/null", "--errorlog-file=/dev/null"])
        .arg(format!("--frontend=127.0.0.1,{}", far.port()))
        .arg(format!("--backend=127.0.0.1,{}", proxy.port()))
        // It permits eight by default.
        .arg("--backend-connections-per-host=1000")
        .args(["--verify-client", "--frontend-http2-max-concurrent-streams=1000"])
        .arg(format!("--verify-client-cacert={}", at.join("ca.pem").display()))
        .args([at.join("far.key"), at.join("far.pem")]);
    let _nghttpx = Process::start(&mut command);
    wait_until("the proxy's port", || TcpStream::connect(far).is_ok()).await;
    let at = at.display();
    let trunk = format!(
        "certificate_authority = \"{at}/ca.pem\"\ncertificate = \"{at}/near.pem\"\nprivate_key = \"{at}/near.key\""
    );
    let near = near_end(far, target, "", &trunk).await;
    for transport in Transport::ALL {
        in_time("a conversation", super::chat(&near, transport)).await;
    }
    let clients = 50;
    let mut present = Vec::new();
    for n in 0..clients {
        let mut client = Client::connect(Transport::Raw, near.raw()).await;
        client.log_in(&format!("user-{n}")).await;
        present.push(client);
    }
    assert!(near.metric("sametime_mux_trunk_connections{end=\"near\"}").await <= 2.0, "they share connections");
}
