//! Warns of a TLS certificate that clients refuse, or soon will.

use std::{sync::Weak, time::Duration};

use tracing::{error, warn};

use super::{ServerContext, unix_time};
use crate::ingress::{IngressSettings, tls::Certificate};

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
