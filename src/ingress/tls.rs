//! TLS on any port: the certificate and its key, client certificates, and handshakes.

use std::{io, path::PathBuf, sync::Arc};

use arc_swap::{ArcSwap, ArcSwapOption};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self, RootCertStore, ServerConfig,
        client::verify_server_name,
        pki_types::{CertificateDer, ServerName},
        server::{NoClientAuth, ParsedCertificate, WebPkiClientVerifier, danger::ClientCertVerifier},
    },
};
use tracing::warn;

pub use crate::net::pem::TlsError;
use crate::{net::pem, stream::StreamError, trunk::FarIdentity};

mod alert;
mod connection;
mod key_kind;
mod pair;

pub(super) use alert::send_alert;
pub(super) use connection::TlsConnection;

/// The files of the certificate and its key, and whether clients have certificates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsSettings {
    /// PEM file with the certificate chain; the server's own certificate is the first.
    pub certificate: PathBuf,
    /// PEM file with the private key.
    pub private_key: PathBuf,
    /// Whether clients are asked for a certificate.
    pub client_certificates: ClientCertificates,
    /// PEM file with the authorities that sign clients' certificates; empty with [`ClientCertificates::Off`].
    pub client_ca: PathBuf,
    /// PEM file with the authorities that sign the certificates of trunks' near ends; empty: there are none.
    pub trunk_client_ca: PathBuf,
}

/// Whether clients are asked for a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientCertificates {
    /// They are not.
    Off,
    /// They are. A client without a certificate is accepted, a client with an invalid one is refused.
    Optional,
    /// They are. A client without a certificate, or without TLS, is refused.
    Required,
}

/// The server's own certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// The file that it is in.
    pub file: PathBuf,
    /// From when it is valid, in seconds since 1970.
    pub begins: i64,
    /// Until when it is valid, in seconds since 1970.
    pub ends: i64,
    der: CertificateDer<'static>,
}

impl Certificate {
    fn read(file: PathBuf, der: CertificateDer<'static>) -> Result<Self, TlsError> {
        let (_, certificate) = x509_parser::parse_x509_certificate(&der)
            .map_err(|error| TlsError(format!("the certificate in {} can't be read: {error}", file.display())))?;
        let validity = certificate.validity();
        let (begins, ends) = (validity.not_before.timestamp(), validity.not_after.timestamp());
        Ok(Self { file, begins, ends, der })
    }

    /// Whether it is for `host`: whether `host` is one of its alternative names.
    pub fn covers(&self, host: &str) -> bool {
        let Ok(certificate) = ParsedCertificate::try_from(&self.der) else { return false };
        ServerName::try_from(host).is_ok_and(|name| verify_server_name(&certificate, &name).is_ok())
    }
}

/// Makes a self-signed certificate if both files are missing, writes both files, and logs a warning. This is for a start,
/// never for a reload. A start that did not get further than the key is completed.
///
/// # Errors
/// A file can't be written.
pub fn make_missing_certificate(settings: &TlsSettings) -> Result<(), TlsError> {
    pair::make_missing(&settings.certificate, &settings.private_key)
}

/// Whether [`make_missing_certificate`] would make a file.
///
/// # Errors
/// A folder can't be searched.
pub fn is_certificate_missing(settings: &TlsSettings) -> Result<bool, TlsError> {
    Ok(pair::state(&settings.certificate, &settings.private_key)? != pair::PairState::Given)
}

/// Makes TLS handshakes with clients. After a reload, new connections get the new certificate.
pub struct Acceptor {
    config: ArcSwap<ServerConfig>,
    certificate: ArcSwap<Certificate>,
    /// Whether clients need a certificate, and of which authorities. A client that was accepted under a different rule
    /// must not resume its TLS session with a ticket.
    clients: ArcSwap<(ClientCertificates, Vec<CertificateDer<'static>>)>,
    /// For the far end of trunks.
    trunk: ArcSwapOption<FarIdentity>,
}

impl Acceptor {
    /// Reads the certificate and the key of `settings`. Writes nothing.
    ///
    /// # Errors
    /// One file is missing, can't be read or contains no certificate or key, or the key is not the certificate's.
    pub fn load(settings: &TlsSettings) -> Result<Self, TlsError> {
        let (certificate, key) = (&settings.certificate, &settings.private_key);
        match (pair::is_there(certificate)?, pair::is_there(key)?) {
            (true, true) => (),
            (false, false) => {
                return Err(TlsError(format!(
                    "neither {} nor {} is there: put both in place (a self-signed pair is made only when the program starts)",
                    certificate.display(),
                    key.display()
                )));
            }
            (there, _) => {
                let (there, absent) = if there { (certificate, key) } else { (key, certificate) };
                return Err(TlsError(format!(
                    "{} is there, but {} is not: provide both files, or remove both to get a self-signed certificate at the next start",
                    there.display(),
                    absent.display()
                )));
            }
        }
        let chain = pem::certificates(certificate)?;
        let own = Certificate::read(certificate.clone(), chain[0].clone())?;
        let authorities = match settings.client_certificates {
            ClientCertificates::Off => Vec::new(),
            _ => pem::certificates(&settings.client_ca)?,
        };
        let private = pem::key(key)?;
        let kind = key_kind::kind_of_key(private.secret_der(), &own.der);
        let trunk = if settings.trunk_client_ca.as_os_str().is_empty() {
            None
        } else {
            Some((chain.clone(), private.clone_key(), pem::certificates(&settings.trunk_client_ca)?))
        };
        let config = ServerConfig::builder()
            .with_client_cert_verifier(verifier(settings, &authorities)?)
            .with_single_cert(chain, private)
            .map_err(|error| match error {
                // The key provider's: the key's form is wrong, or its kind is not supported.
                rustls::Error::General(error) => TlsError(format!(
                    "the key in {} is {kind}, which the TLS library can't use ({error}): use a certificate with {}; for an \
                     EC key: openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out {}",
                    key.display(),
                    key_kind::USABLE,
                    key.display()
                )),
                rustls::Error::InconsistentKeys(_) => TlsError(format!(
                    "the key in {} does not belong to the certificate in {}: use the key that the certificate was requested with",
                    key.display(),
                    certificate.display()
                )),
                error => TlsError(format!("{} with {}: {error}", certificate.display(), key.display())),
            })?;
        let acceptor = Self::new(config, own, (settings.client_certificates, authorities));
        if let Some((chain, key, authorities)) = trunk {
            let identity = FarIdentity::new(chain, key, &authorities, &settings.trunk_client_ca.display())?;
            acceptor.trunk.store(Some(Arc::new(identity)));
        }
        Ok(acceptor)
    }

    fn new(
        mut config: ServerConfig,
        certificate: Certificate,
        clients: (ClientCertificates, Vec<CertificateDer<'static>>),
    ) -> Self {
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        // With tickets, clients that all reconnect at once need no full handshake.
        match rustls::crypto::ring::Ticketer::new() {
            Ok(ticketer) => {
                config.ticketer = ticketer;
                // Each ticket has to be encrypted during the handshake. A client that opens two connections at once
                // and uses each ticket once makes a full handshake for one of them.
                config.send_tls13_tickets = 1;
            }
            Err(error) => warn!(%error, "no session tickets can be made: every TLS handshake is a full one"),
        }
        Self {
            config: ArcSwap::from_pointee(config),
            certificate: ArcSwap::from_pointee(certificate),
            clients: ArcSwap::from_pointee(clients),
            trunk: ArcSwapOption::empty(),
        }
    }

    /// The server's certificate.
    pub fn certificate(&self) -> Arc<Certificate> {
        self.certificate.load_full()
    }

    /// Uses the certificate and the rules of `other` from now on. Tickets stay valid unless the rule for client
    /// certificates has changed.
    pub fn replace(&self, other: &Self) {
        let mut config = ServerConfig::clone(&other.config.load());
        if **self.clients.load() == **other.clients.load() {
            config.ticketer = Arc::clone(&self.config.load().ticketer);
        }
        self.config.store(Arc::new(config));
        self.certificate.store(other.certificate());
        self.clients.store(other.clients.load_full());
        self.trunk.store(other.trunk.load_full());
    }

    /// For the far end of trunks; `None`: it has no TLS.
    pub(super) fn trunk(&self) -> Option<FarIdentity> {
        self.trunk.load().as_deref().cloned()
    }

    /// Makes a handshake.
    ///
    /// # Errors
    /// The handshake fails, or the connection breaks. The alert that says why is written to the stream, as far as it
    /// takes it.
    pub(super) async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
    ) -> Result<TlsConnection<S>, (io::Error, S)> {
        let accepted = TlsAcceptor::from(self.config.load_full()).accept(stream).into_fallible().await;
        accepted.map(TlsConnection).map_err(|(error, stream)| (StreamError::in_tls(error), stream))
    }
}

/// Verifies the certificates of clients.
fn verifier(
    settings: &TlsSettings,
    authorities: &[CertificateDer<'static>],
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    if settings.client_certificates == ClientCertificates::Off {
        return Ok(Arc::new(NoClientAuth));
    }
    let fault = |error: &dyn std::fmt::Display| {
        TlsError(format!(
            "the certificates in {} can't be authorities for clients: {error}",
            settings.client_ca.display()
        ))
    };
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(authority.clone()).map_err(|error| fault(&error))?;
    }
    let builder = WebPkiClientVerifier::builder(Arc::new(roots));
    let builder = if settings.client_certificates == ClientCertificates::Optional {
        builder.allow_unauthenticated()
    } else {
        builder
    };
    builder.build().map(|verifier| verifier as _).map_err(|error| fault(&error))
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    fn settings(folder: &Path, certificate: &str, key: &str) -> TlsSettings {
        TlsSettings {
            certificate: folder.join(certificate),
            private_key: folder.join(key),
            client_certificates: ClientCertificates::Off,
            client_ca: PathBuf::new(),
            trunk_client_ca: PathBuf::new(),
        }
    }

    fn make(settings: &TlsSettings) -> Acceptor {
        make_missing_certificate(settings).expect("made");
        Acceptor::load(settings).expect("loaded")
    }

    fn fault(settings: &TlsSettings) -> String {
        Acceptor::load(settings).err().expect("a fault").to_string()
    }

    #[test]
    fn a_pair_is_made_once_and_kept() {
        let folder = tempfile::tempdir().expect("folder");
        let here = settings(folder.path(), "deep/server.pem", "deep/server.key");
        make(&here);
        let key = fs::read(&here.private_key).expect("written");
        let mode =
            std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&here.private_key).expect("there").permissions());
        assert_eq!(mode & 0o777, 0o600);
        let loaded = make(&here);
        assert_eq!(fs::read(&here.private_key).expect("kept"), key);
        assert!(loaded.certificate().ends > 1_700_000_000);
    }

    #[test]
    fn what_is_wrong_with_a_pair_is_said() {
        let folder = tempfile::tempdir().expect("folder");
        for name in ["a", "b"] {
            make(&settings(folder.path(), &format!("{name}.pem"), &format!("{name}.key")));
        }
        let says = |certificate: &str, key: &str| fault(&settings(folder.path(), certificate, key));
        assert!(says("none", "no").contains("neither "), "both absent");
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
        fs::create_dir(folder.path().join("e.pem")).expect("folder");
        assert!(says("e.pem", "a.key").contains("can't be read"));
    }

    #[test]
    fn names_are_those_of_the_certificate() {
        let folder = tempfile::tempdir().expect("folder");
        let loaded = make(&settings(folder.path(), "a.pem", "a.key"));
        let certificate = loaded.certificate();
        assert!(certificate.covers("localhost") && certificate.covers("127.0.0.1"));
        assert!(!certificate.covers("sametime.example") && !certificate.covers("no name"));
    }
}
