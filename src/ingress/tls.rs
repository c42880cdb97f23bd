//! TLS on any port: the pair on disk, and handshakes with it.

use std::{
    fs, io,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use rustls_pemfile::Item;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self, ServerConfig,
        pki_types::{CertificateDer, PrivateKeyDer},
    },
    server::TlsStream,
};
use tracing::warn;

use super::TlsSettings;

/// How long a self-signed certificate is good: until its admin has a real one.
const SELF_SIGNED_FOR: Duration = Duration::from_secs(5 * 365 * 24 * 60 * 60);

/// Why there is no TLS: for an admin, with file and mend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault(String);

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Fault {}

/// Makes TLS of a client's stream. A new pair is for connections from then on.
pub struct Acceptor {
    config: ArcSwap<ServerConfig>,
    expiry: ArcSwap<i64>,
}

impl Acceptor {
    /// Reads the pair of `settings`. Where both files are absent, a self-signed pair is made
    /// and written there, with a warning.
    ///
    /// # Errors
    /// One file is absent, unreadable, holds no certificate or key, or the two don't match.
    pub fn load(settings: &TlsSettings) -> Result<Self, Fault> {
        let (certificate, key) = (&settings.certificate, &settings.private_key);
        match (certificate.exists(), key.exists()) {
            (false, false) => make_pair(certificate, key)?,
            (true, true) => (),
            (there, _) => {
                let (there, absent) = if there { (certificate, key) } else { (key, certificate) };
                return Err(Fault(format!(
                    "{} is there but {} is not: put both in place, or remove both and a self-signed pair is made",
                    there.display(),
                    absent.display()
                )));
            }
        }
        let chain = read_chain(certificate)?;
        let expiry = expiry(&chain, certificate)?;
        let config =
            ServerConfig::builder().with_no_client_auth().with_single_cert(chain, read_key(key)?).map_err(|error| {
                match error {
                    rustls::Error::InconsistentKeys(_) => Fault(format!(
                        "the key in {} does not belong to the certificate in {}",
                        key.display(),
                        certificate.display()
                    )),
                    error => Fault(format!("{} with {}: {error}", certificate.display(), key.display())),
                }
            })?;
        Ok(Self::new(config, expiry))
    }

    fn new(mut config: ServerConfig, expiry: i64) -> Self {
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        // Clients that reconnect in a storm need no full handshake.
        match rustls::crypto::ring::Ticketer::new() {
            Ok(ticketer) => config.ticketer = ticketer,
            Err(error) => warn!(%error, "no session tickets: every TLS handshake is a full one"),
        }
        Self { config: ArcSwap::from_pointee(config), expiry: ArcSwap::from_pointee(expiry) }
    }

    /// When the server's certificate ends, in seconds since 1970.
    pub fn expiry(&self) -> i64 {
        **self.expiry.load()
    }

    /// Takes over the pair of `other`. Tickets given out stay good.
    pub fn replace(&self, other: &Self) {
        let mut config = ServerConfig::clone(&other.config.load());
        config.ticketer = Arc::clone(&self.config.load().ticketer);
        self.config.store(Arc::new(config));
        self.expiry.store(other.expiry.load_full());
    }

    pub(super) async fn accept<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: S) -> io::Result<TlsStream<S>> {
        TlsAcceptor::from(self.config.load_full()).accept(stream).await
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Fault> {
    fs::read(path).map_err(|error| Fault(format!("{} can't be read: {error}", path.display())))
}

fn items(path: &Path) -> Result<Vec<Item>, Fault> {
    let bytes = read(path)?;
    // PKCS#12 is DER: a sequence with a long length.
    if bytes.starts_with(&[0x30, 0x82]) {
        return Err(Fault(format!(
            "{} is DER or PKCS#12, PEM is needed: openssl pkcs12 -in FILE -nodes -out FILE.pem",
            path.display()
        )));
    }
    if bytes.windows(21).any(|w| w == b"BEGIN ENCRYPTED PRIVA") || bytes.windows(18).any(|w| w == b"Proc-Type: 4,ENCRY")
    {
        return Err(Fault(format!(
            "the key in {} is encrypted, and nobody is there to type its password: openssl pkey -in FILE -out FILE.key",
            path.display()
        )));
    }
    rustls_pemfile::read_all(&mut &bytes[..])
        .collect::<Result<_, _>>()
        .map_err(|error| Fault(format!("{} is no PEM file: {error}", path.display())))
}

fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, Fault> {
    let chain: Vec<_> = items(path)?
        .into_iter()
        .filter_map(|item| if let Item::X509Certificate(certificate) = item { Some(certificate) } else { None })
        .collect();
    if chain.is_empty() {
        return Err(Fault(format!("{} holds no certificate (-----BEGIN CERTIFICATE-----)", path.display())));
    }
    Ok(chain)
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, Fault> {
    let key = items(path)?.into_iter().find_map(|item| match item {
        Item::Pkcs8Key(key) => Some(key.into()),
        Item::Pkcs1Key(key) => Some(key.into()),
        Item::Sec1Key(key) => Some(key.into()),
        _ => None,
    });
    key.ok_or_else(|| Fault(format!("{} holds no private key (-----BEGIN PRIVATE KEY-----)", path.display())))
}

fn expiry(chain: &[CertificateDer<'_>], path: &Path) -> Result<i64, Fault> {
    let first = chain.first().map(AsRef::as_ref).unwrap_or_default();
    let (_, certificate) = x509_parser::parse_x509_certificate(first)
        .map_err(|error| Fault(format!("the certificate in {} can't be read: {error}", path.display())))?;
    Ok(certificate.validity().not_after.timestamp())
}

/// Makes a self-signed pair for this machine's name and writes it.
fn make_pair(certificate: &Path, key: &Path) -> Result<(), Fault> {
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    if let Ok(host) = rustix::system::uname().nodename().to_str()
        && !host.is_empty()
        && !names.iter().any(|name| name == host)
    {
        names.insert(0, host.to_owned());
    }
    let made = rcgen::KeyPair::generate().and_then(|signing_key| {
        let mut parameters = rcgen::CertificateParams::new(names)?;
        let now = SystemTime::now();
        // An hour for clocks that are behind.
        parameters.not_before = (now - Duration::from_secs(3600)).into();
        parameters.not_after = (now + SELF_SIGNED_FOR).into();
        Ok((parameters.self_signed(&signing_key)?, signing_key))
    });
    let (signed, signing_key) = made.map_err(|error| Fault(format!("no self-signed pair could be made: {error}")))?;
    write_new(key, signing_key.serialize_pem().as_bytes(), 0o600)?;
    write_new(certificate, signed.pem().as_bytes(), 0o644)?;
    warn!(certificate = %certificate.display(), key = %key.display(),
        "no TLS pair was there: a self-signed one was made; clients will not trust it until you replace both files and reload");
    Ok(())
}

fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Fault> {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    let written = || {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?.write_all(bytes)
    };
    written().map_err(|error| {
        Fault(format!("{} is not there, and no self-signed pair could be written: {error}", path.display()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(folder: &Path, certificate: &str, key: &str) -> TlsSettings {
        TlsSettings { certificate: folder.join(certificate), private_key: folder.join(key) }
    }

    fn fault(settings: &TlsSettings) -> String {
        Acceptor::load(settings).err().expect("a fault").to_string()
    }

    #[test]
    fn a_pair_is_made_once_and_kept() {
        let folder = tempfile::tempdir().expect("folder");
        let here = settings(folder.path(), "deep/server.pem", "deep/server.key");
        Acceptor::load(&here).expect("made");
        let key = fs::read(&here.private_key).expect("written");
        let mode =
            std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&here.private_key).expect("there").permissions());
        assert_eq!(mode & 0o777, 0o600);
        let loaded = Acceptor::load(&here).expect("loaded");
        assert_eq!(fs::read(&here.private_key).expect("kept"), key);
        assert!(loaded.expiry() > 1_700_000_000);
    }

    #[test]
    fn what_is_wrong_with_a_pair_is_said() {
        let folder = tempfile::tempdir().expect("folder");
        for name in ["a", "b"] {
            Acceptor::load(&settings(folder.path(), &format!("{name}.pem"), &format!("{name}.key"))).expect("made");
        }
        let says = |certificate: &str, key: &str| fault(&settings(folder.path(), certificate, key));
        assert!(says("a.pem", "none").contains("none is not"), "one absent");
        assert!(says("none", "a.key").contains("none is not"), "one absent");
        assert!(says("a.pem", "b.key").contains("does not belong"), "mismatch");
        assert!(says("a.key", "a.key").contains("holds no certificate"));
        assert!(says("a.pem", "a.pem").contains("holds no private key"));
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).expect("written");
        write("c.key", "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n");
        assert!(says("a.pem", "c.key").contains("is encrypted"));
        write("c.pem", "0\u{0}");
        assert!(says("c.pem", "a.key").contains("holds no certificate"));
        fs::write(folder.path().join("d.pem"), [0x30, 0x82, 1, 2]).expect("written");
        assert!(says("d.pem", "a.key").contains("PKCS#12"));
        fs::create_dir(folder.path().join("e.pem")).expect("folder");
        assert!(says("e.pem", "a.key").contains("can't be read"));
    }
}
