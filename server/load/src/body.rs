//! The JSON that each endpoint takes.

use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::client::Outgoing;
use crate::dataset::Item;

/// What is asked of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Endpoint {
    Chat,
    Completions,
    Embeddings,
    Rerank,
}

impl Endpoint {
    pub fn name(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Completions => "completions",
            Self::Embeddings => "embeddings",
            Self::Rerank => "rerank",
        }
    }

    /// Behind the base URL.
    pub fn route(self) -> &'static str {
        match self {
            Self::Chat => "chat/completions",
            Self::Completions => "completions",
            Self::Embeddings => "embeddings",
            Self::Rerank => "rerank",
        }
    }

    /// The name that vLLM has for it, in results.
    pub fn backend(self) -> &'static str {
        match self {
            Self::Chat => "openai-chat",
            Self::Completions => "openai",
            Self::Embeddings => "openai-embeddings",
            Self::Rerank => "vllm-rerank",
        }
    }

    /// Whether its answers are streams of tokens.
    pub fn generates(self) -> bool {
        matches!(self, Self::Chat | Self::Completions)
    }
}

/// Makes requests of what is asked.
#[derive(Clone, Debug)]
pub(crate) struct Template {
    pub endpoint: Endpoint,
    pub path: String,
    pub model: String,
    pub ignore_eos: bool,
    pub temperature: Option<f64>,
    /// Goes into every body, over what would be there.
    pub extra: Map<String, Value>,
}

impl Template {
    pub(crate) fn outgoing(&self, item: Item) -> Outgoing {
        let stream = self.endpoint.generates();
        Outgoing {
            path: self.path.clone(),
            output_tokens: item.output_tokens,
            body: Bytes::from(self.body(item).to_string()),
            stream,
        }
    }

    fn body(&self, item: Item) -> Value {
        let mut body = Map::new();
        body.insert("model".to_owned(), json!(self.model));
        match self.endpoint {
            Endpoint::Chat => {
                let message = json!([{ "role": "user", "content": item.prompt }]);
                body.insert("messages".to_owned(), message);
            }
            Endpoint::Completions => {
                body.insert("prompt".to_owned(), Value::String(item.prompt));
            }
            Endpoint::Embeddings => {
                body.insert("input".to_owned(), Value::String(item.prompt));
            }
            Endpoint::Rerank => {
                body.insert("query".to_owned(), Value::String(item.prompt));
                body.insert("documents".to_owned(), json!(item.documents));
            }
        }
        if self.endpoint.generates() {
            body.insert("max_tokens".to_owned(), json!(item.output_tokens));
            body.insert("stream".to_owned(), json!(true));
            body.insert("stream_options".to_owned(), json!({ "include_usage": true }));
            if let Some(temperature) = self.temperature {
                body.insert("temperature".to_owned(), json!(temperature));
            }
            if self.ignore_eos {
                body.insert("ignore_eos".to_owned(), json!(true));
            }
        }
        body.extend(self.extra.clone());
        Value::Object(body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(endpoint: Endpoint, extra: &Value) -> Value {
        let template = Template {
            endpoint,
            path: "/v1/x".to_owned(),
            model: "m".to_owned(),
            ignore_eos: true,
            temperature: Some(0.0),
            extra: extra.as_object().cloned().unwrap_or_default(),
        };
        let item = Item {
            prompt: "say \"a\"".to_owned(),
            documents: vec!["d".to_owned()],
            input_tokens: 3,
            output_tokens: 9,
        };
        serde_json::from_slice(&template.outgoing(item).body).unwrap()
    }

    #[test]
    fn each_endpoint_gets_its_words() {
        let usage = json!({ "include_usage": true });
        assert_eq!(
            body(Endpoint::Chat, &Value::Null),
            json!({ "model": "m", "messages": [{ "role": "user", "content": "say \"a\"" }], "max_tokens": 9, "stream": true,
                "stream_options": usage, "temperature": 0.0, "ignore_eos": true })
        );
        assert_eq!(body(Endpoint::Completions, &Value::Null)["prompt"], "say \"a\"");
        assert_eq!(
            body(Endpoint::Embeddings, &Value::Null),
            json!({ "model": "m", "input": "say \"a\"" })
        );
        assert_eq!(
            body(Endpoint::Rerank, &Value::Null),
            json!({ "model": "m", "query": "say \"a\"", "documents": ["d"] })
        );
        assert_eq!(
            body(Endpoint::Chat, &json!({ "max_tokens": 1, "n": 2 }))["max_tokens"],
            1
        );
    }
}
