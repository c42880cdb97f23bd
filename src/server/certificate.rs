//! Loads the TLS certificate, and warns if clients refuse it, or soon will.

use std::{sync::Weak, time::Duration};

use tracing::{error, warn};

use super::{ServerContext, ServerError, unix_time};
use crate::{
    config,
    ingress::{
        IngressSettings, TlsSettings,
        tls::{self, Acceptor, Certificate, TlsError},
    },
    telemetry::outcome::ReloadRefusal,
    trunk::NearIdentity,
};

/// A day, in seconds.
const DAY: i64 = 24 * 60 * 60;
/// A certificate that expires within this time is reported, in seconds.
const SOON: i64 = 30 * DAY;

/// The validity of a certificate at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Validity {
    NotYet,
    Good,
    /// Expires within this number of whole days.
    Soon(i64),
    /// Has been expired for this number of whole days.
    Ended(i64),
}

/// The validity at `now` of a certificate that is valid from `begins` to `ends`; all in seconds since 1970.
fn validity(begins: i64, ends: i64, now: i64) -> Validity {
    match ends - now {
        left if left < 0 => Validity::Ended(-left / DAY),
        _ if begins > now => Validity::NotYet,
        left if left < SOON => Validity::Soon(left / DAY),
        _ => Validity::Good,
    }
}

/// Loads the certificate of `settings` for a start, which makes a self-signed one if there is none.
///
/// # Errors
/// The certificate and its key can't be used, or made.
pub(super) async fn load_for_start(settings: &config::Settings) -> Result<Acceptor, ServerError> {
    load(settings, |settings| tls::make_missing_certificate(settings).and_then(|()| Acceptor::load(settings))).await
}

/// Loads the certificate of `settings` for a reload. Writes nothing.
///
/// # Errors
/// The certificate and its key can't be used, or are absent.
pub(super) async fn load_for_reload(settings: &config::Settings) -> Result<Acceptor, ServerError> {
    load(settings, Acceptor::load).await
}

/// Loads the certificate on a thread for blocking work, so that a slow disk does not hold up anything else.
async fn load(
    settings: &config::Settings,
    load: impl FnOnce(&TlsSettings) -> Result<Acceptor, TlsError> + Send + 'static,
) -> Result<Acceptor, ServerError> {
    let settings = settings.ingress.tls.clone();
    let loaded = tokio::task::spawn_blocking(move || load(&settings)).await;
    Ok(loaded.map_err(|error| ServerError::new(ReloadRefusal::Tls, error.to_string()))??)
}

/// Loads the certificates of the trunks' near ends, on a thread for blocking work.
///
/// # Errors
/// A file can't be used.
pub(super) async fn load_near_identity(settings: &config::Settings) -> Result<Option<NearIdentity>, ServerError> {
    let settings = settings.community.trunk.clone();
    let loaded = tokio::task::spawn_blocking(move || NearIdentity::load(&settings)).await;
    Ok(loaded.map_err(|error| ServerError::new(ReloadRefusal::Tls, error.to_string()))??)
}

/// Checks the files that `settings` name: the certificate would not keep the program from starting. Writes nothing.
///
/// # Errors
/// What is wrong with a file.
pub fn check_files(settings: &config::Settings) -> Result<(), ServerError> {
    NearIdentity::load(&settings.community.trunk)?;
    let settings = &settings.ingress.tls;
    if !tls::is_certificate_missing(settings)? {
        Acceptor::load(settings)?;
    }
    Ok(())
}

/// Logs what is wrong with `certificate` at `now`, in seconds since 1970.
fn log_problems(certificate: &Certificate, settings: &IngressSettings, now: i64) {
    let file = certificate.file.display();
    match validity(certificate.begins, certificate.ends, now) {
        Validity::Good => (),
        Validity::NotYet => {
            warn!(certificate = %file, "the TLS certificate is not valid yet: check the clock of this machine");
        }
        Validity::Soon(days) => {
            warn!(certificate = %file, days, "the TLS certificate ends within 30 days: replace it and reload");
        }
        Validity::Ended(days) => {
            error!(certificate = %file, days, "the TLS certificate has ended, clients refuse it: replace it and reload");
        }
    }
    // A host name in the configuration is probably the name that clients connect to. An address may not be: clients may
    // know the machine by another one.
    let mut hosts: Vec<&str> = settings.listeners.iter().map(|listener| &*listener.host).collect();
    hosts.dedup();
    let is_name = |host: &&str| !host.is_empty() && host.parse::<std::net::IpAddr>().is_err();
    for host in hosts.into_iter().filter(is_name).filter(|host| !certificate.covers(host)) {
        warn!(certificate = %file, host_name = host,
            "the TLS certificate is not for this name, clients that connect by it refuse it: get one with subjectAltName DNS:{host}");
    }
}

impl ServerContext {
    /// Shows in the metrics when `certificate` expires, and logs what is wrong with it.
    pub(super) fn report_certificate(&self, certificate: &Certificate, settings: &IngressSettings) {
        self.telemetry.tls.set_certificate_expires(certificate.ends);
        log_problems(certificate, settings, i64::try_from(unix_time()).unwrap_or(i64::MAX));
    }
}

/// Reports the certificate once a day, because there may be no reload for a year. Ends with the server.
pub(super) async fn report_daily(server: Weak<ServerContext>) {
    loop {
        tokio::time::sleep(Duration::from_secs(DAY.unsigned_abs())).await;
        let Some(server) = server.upgrade() else { return };
        server.report_certificate(&server.ingress.certificate(), &server.settings.load().ingress);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_warned_of_in_time() {
        let at = |now| validity(100 * DAY, 200 * DAY, now);
        assert_eq!(at(99 * DAY), Validity::NotYet);
        assert_eq!(at(100 * DAY), Validity::Good);
        assert_eq!(at(170 * DAY), Validity::Good);
        assert_eq!(at(170 * DAY + 1), Validity::Soon(29));
        assert_eq!(at(200 * DAY), Validity::Soon(0));
        assert_eq!(at(203 * DAY), Validity::Ended(3));
    }
}
