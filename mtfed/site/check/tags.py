"""DICOM attributes that can identify a person, and which of them a file fills.

They are taken from the Basic Application Level Confidentiality Profile, DICOM PS3.15 Annex E, Table E.1-1: those of its
attributes that name a person, a place or a time, or whose free text can do so. Unique identifiers are left out, because
every file has them and only the hospital can link them to a person. Only the names of attributes are reported, never
their values.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydicom import Dataset


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


PERSON = _words("""
    PatientName PatientID PatientBirthDate PatientBirthTime PatientBirthName PatientAddress PatientTelephoneNumbers
    PatientTelecomInformation PatientMotherBirthName PatientInsurancePlanCodeSequence PatientReligiousPreference
    PatientInstitutionResidence OtherPatientIDs OtherPatientIDsSequence OtherPatientNames IssuerOfPatientID
    MilitaryRank BranchOfService CountryOfResidence RegionOfResidence EthnicGroup Occupation MedicalRecordLocator
    ResponsiblePerson ResponsibleOrganization PersonName PersonAddress PersonTelephoneNumbers
    PersonTelecomInformation InsurancePlanIdentification AccessionNumber AdmissionID ServiceEpisodeID
    AdditionalPatientHistory PatientComments CurrentPatientLocation ReferencedPatientSequence
    ReferencedPatientPhotoSequence VisitComments ImageComments ConfidentialityConstraintOnPatientDataDescription
    IdentifyingComments
""")
STAFF = _words("""
    ReferringPhysicianName ReferringPhysicianAddress ReferringPhysicianTelephoneNumbers
    ReferringPhysicianIdentificationSequence PerformingPhysicianName PerformingPhysicianIdentificationSequence
    PhysiciansOfRecord PhysiciansOfRecordIdentificationSequence PhysiciansReadingStudyIdentificationSequence
    NameOfPhysiciansReadingStudy OperatorsName OperatorIdentificationSequence RequestingPhysician
    ScheduledPerformingPhysicianName ScheduledPerformingPhysicianIdentificationSequence ConsultingPhysicianName
    OrderEnteredBy OrderEntererLocation OrderCallbackPhoneNumber VerifyingObserverName
    VerifyingObserverIdentificationCodeSequence AuthorObserverSequence ContentCreatorName
    ContentCreatorIdentificationCodeSequence ReviewerName HumanPerformerName HumanPerformerOrganization
    ActualHumanPerformersSequence PersonIdentificationCodeSequence NamesOfIntendedRecipientsOfResults
    DistributionName DistributionAddress InterpretationRecorder InterpretationTranscriber InterpretationAuthor
    InterpretationApproverSequence
""")
PLACE = _words("""
    InstitutionName InstitutionAddress InstitutionalDepartmentName InstitutionCodeSequence StationName
    DeviceSerialNumber GantryID PlateID DetectorID CassetteID PerformedStationName PerformedStationAETitle
    PerformedLocation ScheduledStationName ScheduledStationAETitle ScheduledProcedureStepLocation RequestingService
    PerformedStationNameCodeSequence ScheduledStationNameCodeSequence RetrieveAETitle
""")
TIME = _words("""
    StudyDate SeriesDate AcquisitionDate ContentDate AcquisitionDateTime AdmittingDate AdmittingTime
    InstanceCreationDate OverlayDate CurveDate ScheduledProcedureStepStartDate ScheduledProcedureStepEndDate
    PerformedProcedureStepStartDate PerformedProcedureStepEndDate ScheduledAdmissionDate ScheduledDischargeDate
    DischargeDate LastMenstrualDate DateOfSecondaryCapture FrameAcquisitionDateTime VerificationDateTime
""")
GROUPS = {"person": PERSON, "staff": STAFF, "place": PLACE, "time": TIME}
PRIVATE, OVERLAY, BURNED_IN = "private tags", "overlays", "BurnedInAnnotation = YES"
# Written in place of values that were removed.
PLACEHOLDERS = _words("""
    anonymous anonymized anonymised anonym anon removed deleted deidentified de-identified none unknown no_name
    noname na n/a xxx x 0 00000000 19000101
""")
IDENTIFYING = frozenset[str]().union(*GROUPS.values())


def identifying_tags(content: bytes) -> tuple[str, ...]:
    """Return the sorted names of the identifying attributes that a DICOM file fills; none if it is another file."""
    if content[128:132] != b"DICM":
        return ()
    from ...data.formats.dicom import read_header

    try:
        return _filled_tags(read_header(io.BytesIO(content)))
    except Exception:  # a broken file can raise any error; another check reports that it cannot be read
        return ()


def _filled_tags(header: Dataset) -> tuple[str, ...]:
    """Return the sorted names of the identifying attributes that a header fills, at any depth.

    If the header says that the patient's identity was removed, the patient's name and ID are pseudonyms and are not
    returned.
    """
    names = set()
    is_removed = str(header.get("PatientIdentityRemoved", "")).upper() == "YES"
    for element in header.iterall():
        group = element.tag.group
        if element.tag.is_private:
            # A creator element only names the owner of a block. The other elements can contain anything.
            if not element.tag.is_private_creator and not element.is_empty:
                names.add(PRIVATE)
        elif 0x6000 <= group <= 0x60FF and element.tag.element == 0x3000:
            names.add(OVERLAY)
        elif element.keyword == "BurnedInAnnotation" and str(element.value).upper() == "YES":
            names.add(BURNED_IN)
        elif is_removed and element.keyword in ("PatientName", "PatientID"):
            continue
        elif element.keyword in IDENTIFYING and not element.is_empty and _is_informative(element.value):
            names.add(element.keyword)
    return tuple(sorted(names))


def _is_informative(value: object) -> bool:
    words = str(value).replace("^", " ").lower().split()
    return bool(words) and not PLACEHOLDERS.issuperset(words)
