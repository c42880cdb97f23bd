//! TLS, tested with OpenSSL's client: versions and ciphers, unusable certificates, client certificates.
#![allow(clippy::cast_possible_truncation, clippy::unwrap_used)]

mod support;

use std::{
    collections::BTreeSet,
    fs,
    net::SocketAddr,
    path::Path,
    process::{Command, Stdio},
};

use support::{
    client::{Client, Transport},
    frames, has, http, in_time,
    mux::{self, Mux},
    peer::{self, text},
    program::{Setup, local},
    record,
};
use tokio::io::AsyncReadExt;

const MISMATCH: u32 = 0x8000_0212;

/// Runs an openssl command in `folder`. Returns its output.
fn openssl(folder: &Path, arguments: &str) -> String {
    let mut command = Command::new("openssl");
    let output = command.args(arguments.split_whitespace()).current_dir(folder).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "openssl {arguments}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// The output of `openssl s_client` about a handshake.
async fn s_client(to: SocketAddr, arguments: &str) -> String {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-connect", &to.to_string(), "-servername", "localhost"]).stdin(Stdio::null());
    let output = peer::run(command.args(arguments.split_whitespace())).await;
    text(&output.stdout) + &text(&output.stderr)
}

/// The cipher that was agreed on, from the output of `openssl s_client`; `None` if there is none.
fn cipher(said: &str) -> Option<&str> {
    let line = said.lines().find(|line| line.starts_with("New, "))?;
    line.rsplit_once("Cipher is ").map(|(_, name)| name).filter(|name| *name != "(NONE)")
}

/// Makes a self-signed certificate for `names` with an RSA key, in `folder`.
fn rsa_pair(folder: &Path, name: &str, names: &str, days: &str) {
    openssl(
        folder,
        &format!(
            "req -x509 -newkey rsa:2048 -noenc -keyout {name}.key -out {name}.pem -subj /CN={name} -addext subjectAltName={names} {days}"
        ),
    );
}

#[tokio::test]
async fn only_tls_1_2_and_1_3_are_accepted_and_only_with_modern_ciphers() {
    if !has("openssl", "openssl") {
        return;
    }
    let (mut tried, mut agreed_on) = (0, 0);
    // With a key of each kind, because a cipher of TLS 1.2 works with one kind only.
    for kind in ["ECDSA", "RSA"] {
        let folder = tempfile::tempdir().unwrap();
        let mut settings = mux::settings("", folder.path());
        if kind == "RSA" {
            rsa_pair(folder.path(), "server", "DNS:localhost", "-days 365");
            settings.ingress.tls.certificate = folder.path().join("server.pem");
            settings.ingress.tls.private_key = folder.path().join("server.key");
        }
        let server = sametime_mux::server::Server::start(settings).await.unwrap();
        let mux = Mux { server, folder };
        let to = mux.raw();
        for old in ["-tls1", "-tls1_1"] {
            let said = s_client(to, &format!("{old} -cipher ALL:@SECLEVEL=0")).await;
            // An alert comes from the server. So the client did offer the version.
            let refused =
                ["alert protocol version", "alert handshake failure"].iter().any(|alert| said.contains(alert));
            assert!(refused, "{old}: {said}");
            assert_eq!(cipher(&said), None);
        }
        let offered = openssl(mux.folder.path(), "ciphers -s -tls1_2 ALL:COMPLEMENTOFALL:@SECLEVEL=0");
        let offered: Vec<String> = offered.trim().split(':').map(str::to_owned).collect();
        assert!(offered.len() > 50, "{offered:?}");
        let mut taken = BTreeSet::new();
        tried += offered.len();
        for one in offered {
            let said = s_client(to, &format!("-tls1_2 -cipher {one}:@SECLEVEL=0")).await;
            if let Some(agreed) = cipher(&said) {
                assert_eq!(agreed, one);
                taken.insert(one);
            } else {
                assert!(said.contains("alert handshake failure") || said.contains("no ciphers available"), "{said}");
            }
        }
        agreed_on += taken.len();
        let expected = ["AES128-GCM-SHA256", "AES256-GCM-SHA384", "CHACHA20-POLY1305"];
        assert_eq!(taken, expected.map(|name| format!("ECDHE-{kind}-{name}")).into());
        for suite in ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"] {
            assert_eq!(cipher(&s_client(to, &format!("-tls1_3 -ciphersuites {suite}")).await), Some(suite));
        }
        let said = s_client(to, "-tls1_3 -ciphersuites TLS_AES_128_CCM_SHA256").await;
        assert_eq!(cipher(&said), None, "{said}");
        // There is no compression.
        let said = s_client(to, "-tls1_2").await;
        assert!(said.contains("Compression: NONE"), "{said}");
        assert!(mux.metric("sametime_mux_tls_handshakes_total{reason=\"failed\"}").await > 2.0);
    }
    record::attack(
        "TLS 1.0, TLS 1.1, old ciphers",
        &format!("both versions; {tried} ciphers of TLS 1.2 with two kinds of key: all that openssl can offer"),
        &format!("an alert for all except the {agreed_on} modern ones"),
        "nothing",
        "only_tls_1_2_and_1_3_are_accepted_and_only_with_modern_ciphers",
    );
}

#[tokio::test]
async fn testssl_finds_no_weakness() {
    if !has("testssl", "testssl.sh") || !has("hexdump", "bsdextrautils") {
        return;
    }
    let mux = mux::start("").await;
    let report = mux.folder.path().join("report.csv");
    let mut command = Command::new("testssl");
    command
        .args(["--quiet", "--color", "0", "--warnings", "batch", "--ip", "one", "--nodns", "min"])
        .args(["--protocols", "--heartbleed", "--ccs-injection", "--ticketbleed", "--renegotiation", "--compression"])
        .args(["--tls-fallback", "--sweet32", "--freak", "--drown", "--logjam", "--beast", "--rc4", "--csvfile"])
        .arg(&report)
        .arg(mux.raw().to_string());
    let output = peer::run(&mut command).await;
    let found = fs::read_to_string(&report).unwrap_or_else(|_| panic!("{}", text(&output.stdout)));
    let rows: Vec<Vec<&str>> =
        found.lines().skip(1).map(|row| row.trim_matches('"').split("\",\"").collect()).collect();
    // "id","fqdn/ip","port","severity","finding", ...
    for (id, finding) in
        [("TLS1", "not offered"), ("TLS1_1", "not offered"), ("TLS1_2", "offered"), ("TLS1_3", "offered")]
    {
        let row = rows.iter().find(|row| row[0] == id).unwrap_or_else(|| panic!("no {id} in {found}"));
        assert!(row[4].starts_with(finding), "{row:?}");
    }
    assert!(rows.len() > 15, "{found}");
    let weaknesses: Vec<_> =
        rows.iter().filter(|row| ["LOW", "MEDIUM", "HIGH", "CRITICAL"].contains(&row[3])).collect();
    assert!(weaknesses.is_empty(), "{weaknesses:?}");
}

/// The error when the certificate `pem` and the private key `key` are loaded.
fn load_error(folder: &Path, pem: &str, key: &str) -> String {
    let mut settings = mux::settings("", folder);
    settings.ingress.tls.certificate = folder.join(pem);
    settings.ingress.tls.private_key = folder.join(key);
    sametime_mux::ingress::tls::Acceptor::load(&settings.ingress.tls).err().expect("a fault").to_string()
}

/// The message names the file, its format, and a command that converts it. The test runs this command.
#[test]
fn an_unusable_certificate_is_reported_with_the_command_that_fixes_it() {
    if !has("openssl", "openssl") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path();
    rsa_pair(folder, "a", "DNS:localhost", "-days 365");
    rsa_pair(folder, "b", "DNS:localhost", "-days 365");
    let wrong = load_error(folder, "a.pem", "b.key");
    assert!(wrong.contains("b.key does not belong to the certificate in") && wrong.contains("a.pem"), "{wrong}");
    openssl(folder, "pkcs12 -export -in a.pem -inkey a.key -out a.p12 -passout pass:secret");
    openssl(folder, "x509 -in a.pem -outform der -out a.der");
    openssl(folder, "pkey -in a.key -outform der -out a.key.der");
    openssl(folder, "pkey -in a.key -aes256 -passout pass:secret -out a.locked");
    openssl(folder, "rsa -in a.key -aes128 -traditional -passout pass:secret -out a.old");
    for (pem, key, is, password) in [
        ("a.p12", "a.key", "PKCS#12", "-passin pass:secret"),
        ("a.pem", "a.p12", "PKCS#12", "-passin pass:secret"),
        ("a.der", "a.key", "DER", ""),
        ("a.pem", "a.key.der", "DER", ""),
        ("a.pem", "a.locked", "encrypted", "-passin pass:secret"),
        ("a.pem", "a.old", "encrypted", "-passin pass:secret"),
    ] {
        let said = load_error(folder, pem, key);
        let file = if pem == "a.pem" { key } else { pem };
        assert!(said.contains(&folder.join(file).display().to_string()) && said.contains(is), "{said}");
        let command = said.split_once("openssl ").expect("a command").1;
        let made = command.rsplit(' ').next().unwrap();
        openssl(folder, &format!("{command} {password}"));
        let (pem, key) = if file == pem { (made, "a.key") } else { ("a.pem", made) };
        let mut settings = mux::settings("", folder);
        settings.ingress.tls.certificate = folder.join(pem);
        settings.ingress.tls.private_key = folder.join(key);
        sametime_mux::ingress::tls::Acceptor::load(&settings.ingress.tls)
            .unwrap_or_else(|fault| panic!("{said}: {fault}"));
    }
}

#[tokio::test]
async fn a_certificate_that_ends_or_is_for_another_name_gives_a_warning_at_start_and_reload() {
    if !has("openssl", "openssl") {
        return;
    }
    let setup = Setup::new("");
    let folder = setup.folder.path().to_owned();
    let (file, toml) = (setup.file(), setup.toml(&[setup.raw]));
    // This certificate ended in 2021.
    let mut parameters = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
    (parameters.not_before, parameters.not_after) =
        (rcgen::date_time_ymd(2020, 1, 1), rcgen::date_time_ymd(2021, 1, 1));
    let key = rcgen::KeyPair::generate().unwrap();
    fs::write(folder.join("server.pem"), parameters.self_signed(&key).unwrap().pem()).unwrap();
    fs::write(folder.join("server.key"), key.serialize_pem()).unwrap();
    let toml = toml.replacen("[client_connections]\n", "[client_connections]\nhost_name = \"localhost\"\n", 1);
    fs::write(&file, &toml).unwrap();
    let program = setup.start();
    program.wait_for_log("the TLS certificate has ended, clients refuse it");
    assert!(program.metric("sametime_mux_tls_certificate_expiry_seconds").await < 0.0);
    rsa_pair(&folder, "server", "DNS:sametime.example", "-days 20");
    assert_eq!(program.reload("open sesame").await.status, 200);
    program.wait_for_log("the TLS certificate ends within 30 days");
    program.wait_for_log("the TLS certificate is not for this name");
    program.wait_for_log("subjectAltName DNS:localhost");
    let left = program.metric("sametime_mux_tls_certificate_expiry_seconds").await;
    assert!((18.0 * 86_400.0..=20.0 * 86_400.0).contains(&left), "{left}");
    let before = program.log.lock().len();
    rsa_pair(&folder, "server", "DNS:localhost", "-days 365");
    assert_eq!(program.reload("open sesame").await.status, 200);
    program.wait_for_log("revision=3");
    let log = program.log.lock();
    assert!(!log[before..].contains("the TLS certificate"), "{}", &log[before..]);
}

/// Makes a certificate authority, a client certificate signed by it, and one that is self-signed.
fn make_authority(folder: &Path) {
    openssl(folder, "req -x509 -newkey rsa:2048 -noenc -keyout ca.key -out ca.pem -subj /CN=ca -days 30");
    openssl(
        folder,
        "req -x509 -newkey rsa:2048 -noenc -keyout good.key -out good.pem -subj /CN=bob -CA ca.pem -CAkey ca.key -extensions usr_cert -days 30",
    );
    rsa_pair(folder, "bad", "DNS:bob", "-days 30");
}

#[tokio::test]
async fn client_certificates_are_optional_or_required() {
    if !has("openssl", "openssl") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    make_authority(scratch.path());
    let folder = scratch.path().display();
    for how in ["optional", "required"] {
        let ca = scratch.path().join("ca.pem");
        let mux =
            mux::start(&format!("[tls]\nclient_certificates = \"{how}\"\nclient_ca = \"{}\"\n", ca.display())).await;
        for version in ["-tls1_2", "-tls1_3"] {
            // In TLS 1.3 the client finishes before the server checks its certificate. So the client must continue to read.
            let asked = |name: &str| format!("{version} -cert {folder}/{name}.pem -key {folder}/{name}.key -ign_eof");
            let before = mux.metric("sametime_mux_tls_handshakes_total{reason=\"accepted\"}").await;
            let bad = s_client(mux.raw(), &asked("bad")).await;
            assert!(bad.contains("alert"), "{how}, {version}: {bad}");
            assert_eq!(mux.metric("sametime_mux_tls_handshakes_total{reason=\"accepted\"}").await, before);
            let good = s_client(mux.raw(), &asked("good").replace(" -ign_eof", "")).await;
            assert!(cipher(&good).is_some() && !good.contains("alert"), "{how}, {version}: {good}");
        }
        if how == "optional" {
            Client::connect(Transport::Tls, mux.raw()).await.log_in("bob").await;
            Client::connect(Transport::Raw, mux.raw()).await.log_in("bob").await;
            continue;
        }
        let none = s_client(mux.raw(), "-tls1_3 -ign_eof").await;
        assert!(none.contains("alert certificate required"), "{none}");
        let mut plain = Client::connect(Transport::Raw, mux.raw()).await;
        plain.send_frame(&frames::handshake()).await;
        assert_eq!(plain.recv().await.expect("a DestroyCnl").reason(), MISMATCH);
        let mut plain = http::tcp(mux.raw()).await;
        let page = http::exchange(&mut plain, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        assert_eq!(page.status, 403);
        assert_eq!(in_time("the end", plain.read(&mut [0])).await.unwrap(), 0);
        assert_eq!(mux.metric("sametime_mux_connections_dropped_total{reason=\"no_certificate\"}").await, 2.0);
    }
}

#[tokio::test]
async fn a_session_ticket_is_not_accepted_after_client_certificates_become_required() {
    if !has("openssl", "openssl") {
        return;
    }
    let setup = Setup::new("");
    let folder = setup.folder.path().to_owned();
    make_authority(&folder);
    let (raw, file, toml) = (setup.raw, setup.file(), setup.toml(&[setup.raw]));
    let program = setup.start();
    let ticket = folder.join("ticket");
    let said = s_client(local(raw), &format!("-tls1_2 -sess_out {}", ticket.display())).await;
    assert!(cipher(&said).is_some(), "{said}");
    let resumed = s_client(local(raw), &format!("-tls1_2 -sess_in {}", ticket.display())).await;
    assert!(resumed.contains("Reused, "), "{resumed}");
    let ca = folder.join("ca.pem");
    let required = format!("[tls]\nclient_certificates = \"required\"\nclient_ca = \"{}\"\n", ca.display());
    fs::write(&file, toml.replacen("[tls]\n", &required, 1)).unwrap();
    assert_eq!(program.reload("open sesame").await.status, 200);
    let refused = s_client(local(raw), &format!("-tls1_2 -sess_in {}", ticket.display())).await;
    assert!(!refused.contains("Reused, ") && refused.contains("alert"), "{refused}");
}

#[test]
fn a_key_that_the_library_cannot_use_is_named_with_what_to_use() {
    if !has("openssl", "openssl") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path();
    for (name, algorithm, kind) in [
        ("p521", "EC -pkeyopt ec_paramgen_curve:P-521", Some("an EC key on the curve P-521 (secp521r1)")),
        ("k1", "EC -pkeyopt ec_paramgen_curve:secp256k1", Some("an EC key on the curve secp256k1")),
        ("bp", "EC -pkeyopt ec_paramgen_curve:brainpoolP256r1", Some("an EC key on the curve brainpoolP256r1")),
        ("ed448", "ED448", Some("an Ed448 key")),
        ("small", "RSA -pkeyopt rsa_keygen_bits:1024", Some("an RSA key of 1024 bits")),
        ("pss", "RSA-PSS -pkeyopt rsa_keygen_bits:2048", Some("an RSA-PSS key")),
        ("p256", "EC -pkeyopt ec_paramgen_curve:P-256", None),
        ("p384", "EC -pkeyopt ec_paramgen_curve:P-384", None),
        ("ed25519", "ED25519", None),
    ] {
        openssl(folder, &format!("genpkey -algorithm {algorithm} -out {name}.key"));
        openssl(folder, &format!("req -x509 -new -key {name}.key -out {name}.pem -subj /CN={name} -days 30"));
        let mut settings = mux::settings("", folder);
        settings.ingress.tls.certificate = folder.join(format!("{name}.pem"));
        settings.ingress.tls.private_key = folder.join(format!("{name}.key"));
        let loaded = sametime_mux::ingress::tls::Acceptor::load(&settings.ingress.tls);
        let Some(kind) = kind else {
            assert!(loaded.is_ok(), "{name}: {:?}", loaded.err());
            continue;
        };
        let said = loaded.err().expect("a fault").to_string();
        assert!(said.contains(&format!("{name}.key is {kind}, which the TLS library can't use")), "{said}");
        assert!(said.contains("RSA key of 2048 to 8192 bits") && said.contains("P-256"), "{said}");
        // What it says, works.
        let command = said.split_once("openssl ").expect("a command").1;
        openssl(folder, command);
        openssl(folder, &format!("req -x509 -new -key {name}.key -out {name}.pem -subj /CN={name} -days 30"));
        let loaded = sametime_mux::ingress::tls::Acceptor::load(&settings.ingress.tls);
        assert!(loaded.is_ok(), "{name}: {:?}", loaded.err());
    }
}
