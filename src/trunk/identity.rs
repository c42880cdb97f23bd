//! Certificates of both ends: each proves itself to the other one.

use std::sync::Arc;

use rustls_native_certs::load_native_certs;
use tokio_rustls::rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer},
    server::WebPkiClientVerifier,
};

use super::TrunkSettings;
use crate::net::pem::{self, TlsError};

/// HTTP/2, as TLS names it (RFC 7301).
const ALPN: &[u8] = b"h2";

/// How the near end proves itself, and whom it believes.
#[derive(Debug, Clone)]
pub struct NearIdentity(pub(super) Arc<ClientConfig>);

/// How the far end proves itself, and whom it believes.
#[derive(Debug, Clone)]
pub struct FarIdentity(pub(super) Arc<ServerConfig>);

impl NearIdentity {
    /// Reads the files that `settings` name. `None` if no trunk is used, or none with TLS.
    ///
    /// # Errors
    /// A file can't be read or used.
    pub fn load(settings: &TrunkSettings) -> Result<Option<Self>, TlsError> {
        if !settings.is_used || !settings.tls {
            return Ok(None);
        }
        let file = &settings.certificate_authority;
        let mut roots = RootCertStore::empty();
        if file.as_os_str().is_empty() {
            roots.add_parsable_certificates(load_native_certs().certs);
            if roots.is_empty() {
                return Err(TlsError("the system has no certificate authorities: name a file".to_owned()));
            }
        } else {
            roots = authorities(&pem::certificates(file)?, &file.display())?;
        }
        let builder = ClientConfig::builder().with_root_certificates(roots);
        let mut config = if settings.certificate.as_os_str().is_empty() {
            builder.with_no_client_auth()
        } else {
            let (chain, key) = (pem::certificates(&settings.certificate)?, pem::key(&settings.private_key)?);
            builder.with_client_auth_cert(chain, key).map_err(|error| {
                let (certificate, key) = (settings.certificate.display(), settings.private_key.display());
                TlsError(format!("{certificate} with {key}: {error}"))
            })?
        };
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Some(Self(Arc::new(config))))
    }
}

impl FarIdentity {
    /// The far end has this certificate and key, and believes near ends whose certificates `client_ca` has signed, which
    /// come from `file`.
    ///
    /// # Errors
    /// They can't be used.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        client_ca: &[CertificateDer<'static>],
        file: &dyn std::fmt::Display,
    ) -> Result<Self, TlsError> {
        let roots = authorities(client_ca, file)?;
        let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build();
        let verifier = verifier.map_err(|error| TlsError(format!("the certificates in {file}: {error}")))?;
        let config = ServerConfig::builder().with_client_cert_verifier(verifier).with_single_cert(chain, key);
        let mut config = config.map_err(|error| TlsError(format!("the certificate of the trunk: {error}")))?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Self(Arc::new(config)))
    }
}

fn authorities(
    certificates: &[CertificateDer<'static>],
    file: &dyn std::fmt::Display,
) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for authority in certificates {
        roots.add(authority.clone()).map_err(|error| {
            TlsError(format!("the certificates in {file} can't be authorities for the trunk: {error}"))
        })?;
    }
    Ok(roots)
}
