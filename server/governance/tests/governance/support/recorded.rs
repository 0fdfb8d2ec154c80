//! Projects that are recorded.

use rempart_governance::{
    Content, ContentQuery, Counts, Error, Noted, Outcome, ReaderKey, Recording, Sealed, Store, Usage,
    UsageEvent, UsageWriter, now_s, pack,
};

/// A project that is recorded.
pub(crate) struct Recorded {
    pub(crate) project: String,
    pub(crate) row: i64,
    pub(crate) reader: ReaderKey,
}

impl Recorded {
    pub(crate) async fn begin(store: &Store, name: &str) -> Self {
        let project = store.create_project("test", name, &[]).await.unwrap().id;
        let reader = ReaderKey::make().unwrap();
        let recording = Recording {
            reader: Some(reader.public()),
            fingerprints: false,
            days: 1,
            until: now_s() + 100_000,
        };
        store.set_recording("test", &project, &recording).await.unwrap();
        let row = store.recordings().await.unwrap()[&project].row;
        Self { project, row, reader }
    }

    /// A request and its record, which is kept for a day.
    pub(crate) fn request(&self, at: i64, key: &str, began_ms: i64) -> (UsageEvent, Content) {
        let id = format!("request{at}");
        let sealed = Sealed::seal(&self.reader.public(), &id, &pack(b"who am I?"), &pack(b"Anna"));
        let record = Content {
            request: id.clone(),
            project: self.project.clone(),
            key: key.to_owned(),
            began_ms,
            due_ms: Content::due(began_ms, 1),
            announced: self.row,
            fingerprint: "f".repeat(64),
            sealed: sealed.unwrap(),
        };
        let row = UsageEvent {
            id,
            began_ms,
            project: self.project.clone(),
            key: key.to_owned(),
            model: "m".to_owned(),
            endpoint: "/v1/chat/completions".to_owned(),
            input: 10,
            cached: 4,
            output: at,
            first_ms: None,
            duration_ms: 5,
            status: 200,
            outcome: Outcome::Completed.name().to_owned(),
            cost_nano: 3,
            content: record.mark(),
        };
        (row, record)
    }
}

pub(crate) async fn write(store: &Store, some: Vec<(UsageEvent, Content)>) {
    let (rows, records): (Vec<_>, Vec<_>) = some.into_iter().unzip();
    let (rows, records, counts) = (&*rows, &*records, &Counts::new());
    let mut writer = UsageWriter::new(store.clone());
    let usage = Usage {
        rows,
        records,
        counts,
    };
    writer.write_all(usage).await.unwrap();
}

pub(crate) async fn proven(store: &Store) -> Result<i64, Error> {
    Ok(store.prove(&Noted::default()).await?.content)
}

pub(crate) fn of(project: &str) -> ContentQuery {
    ContentQuery {
        project: project.to_owned(),
        ..ContentQuery::default()
    }
}
