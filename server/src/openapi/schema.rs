//! Small schemas, and objects made of them: what `utoipa`'s builders say at more length.

use std::ops::RangeInclusive;

use serde_json::Value;
use utoipa::Number;
use utoipa::openapi::schema::{AdditionalProperties, AnyOfBuilder, ArrayBuilder, Object, SchemaType, Type};
use utoipa::openapi::{Ref, RefOr, Schema};

use super::words::Section;
use crate::openai::shared::TOKEN;

pub(super) type AnySchema = RefOr<Schema>;

fn scalar(kind: Type) -> Object {
    Object::with_type(kind)
}

pub(super) fn boolean() -> AnySchema {
    scalar(Type::Boolean).into()
}

/// A switch that can be set one way only: the other is not implemented, and refused.
pub(super) fn only(value: bool) -> AnySchema {
    let mut schema = scalar(Type::Boolean);
    schema.enum_values = Some(vec![value.into()]);
    schema.into()
}

pub(super) fn number(range: &RangeInclusive<f64>) -> AnySchema {
    let mut schema = scalar(Type::Number);
    schema.minimum = Some(Number::Float(*range.start()));
    schema.maximum = Some(Number::Float(*range.end()));
    schema.into()
}

pub(super) fn integer(range: &RangeInclusive<i64>) -> AnySchema {
    let bound = |n: i64| Some(Number::Int(isize::try_from(n).unwrap_or(isize::MAX)));
    let mut schema = scalar(Type::Integer);
    schema.minimum = bound(*range.start());
    schema.maximum = bound(*range.end());
    schema.into()
}

pub(super) fn count(range: RangeInclusive<usize>) -> AnySchema {
    let mut schema = scalar(Type::Integer);
    schema.minimum = Some(Number::UInt(*range.start()));
    schema.maximum = Some(Number::UInt(*range.end()));
    schema.into()
}

/// A token's number.
pub(super) fn token() -> AnySchema {
    integer(&TOKEN)
}

pub(super) fn string() -> AnySchema {
    scalar(Type::String).into()
}

/// A string of so many bytes, which have at most as many characters.
pub(super) fn text(bytes: RangeInclusive<usize>) -> AnySchema {
    let mut schema = scalar(Type::String);
    schema.min_length = Some(*bytes.start()).filter(|min| *min > 0);
    schema.max_length = Some(*bytes.end());
    schema.into()
}

pub(super) fn pattern(pattern: String) -> AnySchema {
    let mut schema = scalar(Type::String);
    schema.pattern = Some(pattern);
    schema.into()
}

/// One of these words.
pub(super) fn word(words: &[&str]) -> AnySchema {
    let mut schema = scalar(Type::String);
    schema.enum_values = Some(words.iter().map(|word| Value::from(*word)).collect());
    schema.into()
}

/// Any JSON value.
pub(super) fn anything() -> AnySchema {
    Object::with_type(SchemaType::AnyValue).into()
}

pub(super) fn null() -> AnySchema {
    scalar(Type::Null).into()
}

/// An object whose fields are its own affair.
pub(super) fn any_object() -> AnySchema {
    map(anything(), None)
}

/// An object whose keys are values, too.
pub(super) fn map(values: AnySchema, length_max: Option<usize>) -> AnySchema {
    let mut schema = scalar(Type::Object);
    schema.additional_properties = Some(Box::new(AdditionalProperties::RefOr(values)));
    schema.max_properties = length_max;
    schema.into()
}

pub(super) fn array(items: AnySchema, length: &RangeInclusive<usize>) -> AnySchema {
    let length_max = Some(*length.end()).filter(|max| *max < usize::MAX);
    ArrayBuilder::new()
        .items(items)
        .min_items(Some(*length.start()).filter(|min| *min > 0))
        .max_items(length_max)
        .into()
}

/// An array of any length.
pub(super) fn list(items: AnySchema) -> AnySchema {
    array(items, &(0..=usize::MAX))
}

pub(super) fn any_of(schemas: impl IntoIterator<Item = AnySchema>) -> AnySchema {
    let all = schemas.into_iter().fold(AnyOfBuilder::new(), AnyOfBuilder::item);
    all.into()
}

/// JSON as text.
pub(super) fn json(value: AnySchema) -> AnySchema {
    let mut schema = scalar(Type::String);
    schema.content_media_type = String::from("application/json");
    schema.content_schema = Some(Box::new(value));
    schema.into()
}

/// A server-sent event.
pub(super) fn event(data: AnySchema) -> AnySchema {
    Fields::open()
        .property("event", string())
        .required("data", data)
        .build()
}

/// A schema of the document's components.
pub(super) fn named(name: &str) -> AnySchema {
    Ref::from_schema_name(name).into()
}

/// The same, or `null`, which counts as absent in requests.
pub(super) fn or_null(schema: AnySchema) -> AnySchema {
    match schema {
        RefOr::T(Schema::Object(mut object)) => {
            if let SchemaType::Type(kind) = object.schema_type {
                object.schema_type = SchemaType::Array(vec![kind, Type::Null]);
            }
            if let Some(values) = &mut object.enum_values {
                values.push(Value::Null);
            }
            object.into()
        }
        RefOr::T(Schema::Array(mut array)) => {
            array.schema_type = SchemaType::Array(vec![Type::Array, Type::Null]);
            array.into()
        }
        RefOr::T(Schema::AnyOf(mut any)) => {
            any.items.push(null());
            Schema::AnyOf(any).into()
        }
        other => any_of([other, null()]),
    }
}

/// A schema with words about it.
pub(super) fn told(schema: AnySchema, what: &str, example: Option<Value>) -> AnySchema {
    let mut schema = match schema {
        // Beside a reference there is no room for them.
        RefOr::Ref(reference) => match any_of([RefOr::Ref(reference)]) {
            RefOr::T(schema) => schema,
            reference @ RefOr::Ref(_) => return reference,
        },
        RefOr::T(schema) => schema,
    };
    let (description, examples) = match &mut schema {
        Schema::Object(schema) => (&mut schema.description, &mut schema.examples),
        Schema::Array(schema) => (&mut schema.description, &mut schema.examples),
        Schema::OneOf(schema) => (&mut schema.description, &mut schema.examples),
        Schema::AllOf(schema) => (&mut schema.description, &mut schema.examples),
        Schema::AnyOf(schema) => (&mut schema.description, &mut schema.examples),
        _ => return schema.into(),
    };
    *description = Some(what.to_owned()).filter(|what| !what.is_empty());
    examples.extend(example);
    schema.into()
}

fn with_default(schema: AnySchema, value: Value) -> AnySchema {
    match schema {
        RefOr::T(Schema::Object(mut object)) => {
            object.default = Some(value);
            object.into()
        }
        other => other,
    }
}

/// The fields of an object. In requests, what is not required may be `null`, and nothing else may be there.
pub(super) struct Fields {
    object: Object,
    section: Option<Section>,
}

impl Fields {
    pub(super) fn new() -> Self {
        let mut object = scalar(Type::Object);
        object.additional_properties = Some(Box::new(AdditionalProperties::FreeForm(false)));
        Self {
            object,
            section: None,
        }
    }

    /// The body of a request, whose parameters a section of docs/api.md explains.
    pub(super) fn of(section: Section) -> Self {
        Self {
            section: Some(section),
            ..Self::new()
        }
    }

    /// Those of an answer, to which a later version may add some.
    pub(super) fn open() -> Self {
        let mut fields = Self::new();
        fields.object.additional_properties = None;
        fields
    }

    fn put(mut self, name: &str, schema: AnySchema) -> Self {
        let words = self.section.as_ref().and_then(|section| section.row(name));
        let schema = match words {
            Some((example, what)) => told(schema, what, Some(example)),
            None => schema,
        };
        self.object.properties.insert(name.to_owned(), schema);
        self
    }

    pub(super) fn required(mut self, name: &str, schema: AnySchema) -> Self {
        self.object.required.push(name.to_owned());
        self.put(name, schema)
    }

    /// One that need not be there, and is not `null`.
    pub(super) fn property(self, name: &str, schema: AnySchema) -> Self {
        self.put(name, schema)
    }

    pub(super) fn optional(self, name: &str, schema: AnySchema) -> Self {
        self.put(name, or_null(schema))
    }

    /// One that stands for `value` where it is not sent.
    pub(super) fn defaults(self, name: &str, schema: AnySchema, value: impl Into<Value>) -> Self {
        self.put(name, with_default(or_null(schema), value.into()))
    }

    /// Some that change nothing in an answer.
    pub(super) fn without_effect(self, names: &[&str]) -> Self {
        let what = "Without effect: taken, so that clients need not be changed.";
        let one = |fields: Self, name: &&str| fields.put(name, told(anything(), what, None));
        names.iter().fold(self, one)
    }

    pub(super) fn build(self) -> AnySchema {
        self.object.into()
    }
}
