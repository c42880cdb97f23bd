//! The limits of the sandbox. A client that is over one is disconnected with a reason, and the others continue.
//!
//! | limit | for | over it |
//! |---|---|---|
//! | [`MAX_CLIENTS`] | all clients | server is full |
//! | [`MAX_HELD`] | all clients; only a client that holds more than [`FREE`] is concerned | server is full |
//! | [`MAX_FRAME`], before the log-in [`MAX_BEFORE_LOGIN`](crate::wire::frame::MAX_BEFORE_LOGIN) | a frame | message too large |
//! | [`MAX_NAME`], [`MAX_STATUS`], [`MAX_OFFER`], [`MAX_PRIVACY`], [`MAX_ASKED`] | a name, a status, a channel message, a privacy list, a look-up | message too large |
//! | [`MAX_WATCHED`], [`MAX_CHANNELS`] | a client | server is full |
//! | [`MAX_QUEUED`], [`MAX_QUEUED_BYTES`] | messages for a client that does not read | timed out |

/// Clients at the same time.
pub(super) const MAX_CLIENTS: usize = 100_000;
/// Bytes of names, of frames that are not complete, and of messages that wait, for all clients together.
pub(super) const MAX_HELD: usize = 64 * 1024 * 1024;
/// A client that holds no more is not concerned when all together hold too much.
pub(super) const FREE: usize = 64 * 1024;
/// The longest frame that is read, in bytes after the length field.
pub(super) const MAX_FRAME: u32 = 16 * 1024 * 1024;
/// The longest name of a user, in bytes.
pub(super) const MAX_NAME: usize = 1024;
/// The longest status, in bytes. Everybody who watches the user gets it.
pub(super) const MAX_STATUS: usize = 4096;
/// The longest message that opens, accepts or ends a channel, in bytes.
pub(super) const MAX_OFFER: usize = 64 * 1024;
/// The longest privacy list, in bytes. The client gets it back.
pub(super) const MAX_PRIVACY: usize = 64 * 1024;
/// Names in one request to look up names.
pub(super) const MAX_ASKED: usize = 2000;
/// Matches that are listed for a name, if there are several. More are not listed.
pub(super) const MAX_SEVERAL: usize = 20;
/// Matches that one answer lists, for all names that have several. Then only the fact that there are several is told.
pub(super) const MAX_MATCHES: usize = 4000;
/// Names that one client watches, over all its channels.
pub(super) const MAX_WATCHED: usize = 2000;
/// Channels that one client has open, those that others have opened to it among them.
pub(super) const MAX_CHANNELS: usize = 1000;
/// Messages of other clients that wait for one client.
pub(super) const MAX_QUEUED: usize = 4096;
/// Their bytes. One message may be longer.
pub(super) const MAX_QUEUED_BYTES: usize = 8 * 1024 * 1024;
