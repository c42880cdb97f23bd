//! Lines on their way to stderr, from a thread of their own.
//!
//! A line is copied into one buffer that all threads share; the writing thread takes the whole buffer
//! at once. Nobody who logs waits for a write, allocates, or, while lines follow each other closely,
//! wakes a thread: it would cost a log-in more than its line.

use std::{
    io::{self, Write},
    mem,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use parking_lot::{Condvar, Mutex};

/// Bytes of lines that may wait to be written; more lines are dropped rather than that a client waits.
const LIMIT: usize = 16 * 1024 * 1024;
/// A buffer that has grown beyond this is given back once it is written, in bytes.
const KEPT: usize = 64 * 1024;
/// After a write, lines gather for so long.
const GATHER: Duration = Duration::from_millis(10);
/// How long the end of the process waits for lines that are left; whoever reads stderr may hang.
const LAST: Duration = Duration::from_secs(1);

/// Lines that wait.
#[derive(Default)]
struct Waiting {
    bytes: Vec<u8>,
    dropped: u64,
    closing: bool,
}

/// Where lines are put.
#[derive(Default)]
pub(super) struct Lines {
    waiting: Mutex<Waiting>,
    there: Condvar,
}

impl Lines {
    /// Lines that are written to `out`, and what sees to it that they are.
    ///
    /// # Errors
    /// The system has no thread left.
    pub(super) fn start(out: impl Write + Send + 'static) -> io::Result<(Arc<Self>, Writing)> {
        let lines = Arc::new(Self::default());
        let (over, is_over) = mpsc::channel();
        let taken = Arc::clone(&lines);
        thread::Builder::new().name("log".to_owned()).spawn(move || {
            taken.write_all_to(out);
            let _ = over.send(());
        })?;
        Ok((Arc::clone(&lines), Writing { lines, is_over }))
    }

    fn write_all_to(&self, mut out: impl Write) {
        let mut bytes = Vec::new();
        loop {
            let (dropped, closing) = {
                let mut waiting = self.waiting.lock();
                while waiting.bytes.is_empty() && waiting.dropped == 0 && !waiting.closing {
                    self.there.wait(&mut waiting);
                }
                mem::swap(&mut bytes, &mut waiting.bytes);
                (mem::take(&mut waiting.dropped), waiting.closing)
            };
            // Nobody is left to be told that the log can't be written.
            let _ = out.write_all(&bytes);
            if dropped > 0 {
                let _ =
                    writeln!(out, "{dropped} lines of the log are missing here: it is read, or written, too slowly");
            }
            let _ = out.flush();
            if closing {
                return;
            }
            bytes.clear();
            bytes.shrink_to(KEPT);
            thread::sleep(GATHER);
        }
    }

    fn put(&self, line: &[u8]) {
        let mut waiting = self.waiting.lock();
        let was_empty = waiting.bytes.is_empty() && waiting.dropped == 0;
        if waiting.bytes.len() + line.len() > LIMIT {
            waiting.dropped += 1;
        } else {
            waiting.bytes.extend_from_slice(line);
        }
        drop(waiting);
        if was_empty {
            self.there.notify_one();
        }
    }
}

/// Takes whole lines, always.
impl Write for &Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.put(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The writing thread; dropped, it writes what is left.
pub(super) struct Writing {
    lines: Arc<Lines>,
    is_over: mpsc::Receiver<()>,
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.lines.waiting.lock().closing = true;
        self.lines.there.notify_one();
        let _ = self.is_over.recv_timeout(LAST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What was written; writing waits for `may_go_on`.
    struct Slow {
        written: mpsc::Sender<Vec<u8>>,
        may_go_on: mpsc::Receiver<()>,
    }

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.may_go_on.recv();
            let _ = self.written.send(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn who_logs_never_waits_and_is_told_what_is_missing() {
        let ((written, seen), (go_on, may_go_on)) = (mpsc::channel(), mpsc::channel());
        let (lines, writing) = Lines::start(Slow { written, may_go_on }).expect("a thread");
        let put = |line: &[u8]| (&*lines).write_all(line).expect("taken");
        put(b"first\n");
        while !lines.waiting.lock().bytes.is_empty() {
            thread::sleep(Duration::from_millis(1));
        }
        // The first is being written: these gather.
        let line = [b'x'; 1024];
        for _ in 0..LIMIT / line.len() + 3 {
            put(&line);
        }
        assert_eq!(lines.waiting.lock().dropped, 3);
        drop(go_on);
        drop(writing);
        let seen: Vec<Vec<u8>> = seen.try_iter().collect();
        assert_eq!(seen[0], b"first\n");
        assert_eq!(seen[1].len(), LIMIT);
        let rest = String::from_utf8(seen[2..].concat()).expect("text");
        assert!(rest.starts_with("3 lines of the log are missing here"), "{rest}");
    }

    #[test]
    fn a_reader_that_hangs_does_not_hold_the_end_back() {
        let ((written, _seen), (_go_on, may_go_on)) = (mpsc::channel(), mpsc::channel());
        let (lines, writing) = Lines::start(Slow { written, may_go_on }).expect("a thread");
        (&*lines).write_all(b"line\n").expect("taken");
        drop(writing);
    }
}
