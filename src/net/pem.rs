//! Certificates and keys in PEM files. A file of the wrong format is refused with the command that converts it.

use std::{fmt, fs, path::Path};

use rustls_pemfile::Item;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Why TLS can't be used: a text for the admin, with the file and how to fix it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsError(pub String);

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for TlsError {}

/// What a PEM file has to contain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PemContent {
    Certificates,
    Key,
}

/// The items of a PEM file.
fn items(path: &Path, wanted: PemContent) -> Result<Vec<Item>, TlsError> {
    let bytes = fs::read(path).map_err(|error| TlsError(format!("{} can't be read: {error}", path.display())))?;
    let file = path.display();
    if let Some(der) = der(&bytes) {
        return Err(TlsError(match (der, wanted) {
            (Der::Pkcs12, PemContent::Certificates) => format!(
                "{file} is PKCS#12 (a .p12 or .pfx file), but PEM is needed: openssl pkcs12 -in {file} -nokeys -out {file}.pem"
            ),
            (Der::Pkcs12, PemContent::Key) => format!(
                "{file} is PKCS#12 (a .p12 or .pfx file), but PEM is needed: openssl pkcs12 -in {file} -nocerts -nodes -out {file}.key"
            ),
            (Der::Other, PemContent::Certificates) => {
                format!("{file} is DER, but PEM is needed: openssl x509 -inform der -in {file} -out {file}.pem")
            }
            (Der::Other, PemContent::Key) => {
                format!("{file} is DER, but PEM is needed: openssl pkey -inform der -in {file} -out {file}.pem")
            }
        }));
    }
    let contains = |text: &[u8]| bytes.windows(text.len()).any(|window| window == text);
    if wanted == PemContent::Key && (contains(b"BEGIN ENCRYPTED PRIVATE KEY") || contains(b"Proc-Type: 4,ENCRYPTED")) {
        return Err(TlsError(format!(
            "the key in {file} is encrypted, and the server can't ask for its password: openssl pkey -in {file} -out {file}.open"
        )));
    }
    rustls_pemfile::read_all(&mut &bytes[..])
        .collect::<Result<_, _>>()
        .map_err(|error| TlsError(format!("{file} is not a PEM file: {error}")))
}

/// A binary file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Der {
    Pkcs12,
    Other,
}

/// Whether the file is binary: it begins with a SEQUENCE. PKCS#12 has the version 3 there (RFC 7292, section 4).
fn der(bytes: &[u8]) -> Option<Der> {
    let after = match bytes {
        [0x30, 0x80, ..] => 2,
        [0x30, long @ 0x81..=0x84, ..] => 2 + usize::from(long - 0x80),
        _ => return None,
    };
    Some(if bytes.get(after..)?.starts_with(&[2, 1, 3]) { Der::Pkcs12 } else { Der::Other })
}

/// The certificates in a file. There is at least one.
///
/// # Errors
/// The file can't be read, or has none.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let chain: Vec<_> = items(path, PemContent::Certificates)?
        .into_iter()
        .filter_map(|item| if let Item::X509Certificate(certificate) = item { Some(certificate) } else { None })
        .collect();
    if chain.is_empty() {
        return Err(TlsError(format!("{} holds no certificate (-----BEGIN CERTIFICATE-----)", path.display())));
    }
    Ok(chain)
}

/// The first private key in a file.
///
/// # Errors
/// The file can't be read, or has none that can be used.
pub fn key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let key = items(path, PemContent::Key)?.into_iter().find_map(|item| match item {
        Item::Pkcs8Key(key) => Some(key.into()),
        Item::Pkcs1Key(key) => Some(key.into()),
        Item::Sec1Key(key) => Some(key.into()),
        _ => None,
    });
    key.ok_or_else(|| TlsError(format!("{} holds no private key (-----BEGIN PRIVATE KEY-----)", path.display())))
}
