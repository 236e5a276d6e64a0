//! Finding files, pushing a job for each, and hashing them. All of it blocks.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use ignore::WalkBuilder;
use jobs::{Error, Json, Message, Payload, PipelineHandle};
use sha2::{Digest, Sha256};
use tokio::runtime::Handle;

use crate::tally::{Hashed, Tally};

const BATCH: usize = 256;

/// Pushes a job for each file of a directory but the first `skip`. False if it was given up because
/// a push failed in a way that `ends` it.
pub(crate) fn push_files(
    directory: &Path,
    mut skip: usize,
    pipeline: &PipelineHandle,
    tally: &Tally,
    ends: fn(&Error) -> bool,
) -> bool {
    let mut batch = Vec::with_capacity(BATCH);
    for file in files(directory) {
        let message =
            file.and_then(|path| Json(path).message("hash").map_err(|error| error.to_string()));
        match message {
            Ok(_) if skip > 0 => skip -= 1,
            Ok(message) => batch.push(message),
            Err(why) => tally.fail(None, why),
        }
        if batch.len() == BATCH && !push(std::mem::take(&mut batch), pipeline, tally, ends) {
            return false;
        }
    }
    push(batch, pipeline, tally, ends)
}

/// The files of a directory, in the same order each time.
fn files(directory: &Path) -> impl Iterator<Item = Result<PathBuf, String>> {
    let walk = WalkBuilder::new(directory).sort_by_file_name(Ord::cmp).build();
    walk.filter_map(|entry| match entry {
        Ok(entry) => {
            let is_file = entry.file_type().is_some_and(|kind| kind.is_file());
            is_file.then(|| Ok(entry.into_path()))
        }
        Err(error) => Some(Err(error.to_string())),
    })
}

fn push(
    batch: Vec<Message>,
    pipeline: &PipelineHandle,
    tally: &Tally,
    ends: fn(&Error) -> bool,
) -> bool {
    let ids: Vec<_> = batch.iter().map(|message| message.id().clone()).collect();
    tally.update(|counts| {
        counts.pushed += ids.len();
        counts.waiting.extend(ids.iter().cloned());
    });
    let mut goes_on = true;
    for (id, answer) in ids.iter().zip(Handle::current().block_on(pipeline.push_batch(batch))) {
        if let Err(error) = answer {
            goes_on &= !ends(&error);
            tally.fail(Some(id), error.to_string());
        }
    }
    goes_on
}

/// Hashes one file, and prints a line about it if told to.
pub(crate) fn hash_file(path: PathBuf, print: bool) -> io::Result<Hashed> {
    let mut file = BufReader::with_capacity(1 << 16, File::open(&path)?);
    let (mut digest, mut bytes, mut lines) = (Sha256::new(), 0, 0);
    loop {
        let part = file.fill_buf()?;
        if part.is_empty() {
            break;
        }
        digest.update(part);
        lines += part.iter().filter(|byte| **byte == b'\n').count() as u64;
        let length = part.len();
        bytes += length as u64;
        file.consume(length);
    }
    let sha256: String = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    if print {
        writeln!(io::stdout(), "{sha256}  {}", path.display())?;
    }
    Ok(Hashed { path, bytes, lines, sha256 })
}
