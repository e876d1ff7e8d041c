"""DICOM attributes that tell who somebody is, and which of them a file fills.

From the Basic Application Level Confidentiality Profile, DICOM PS3.15 Annex E, Table E.1-1: of its attributes, those
that name a person, a place or a time, or that free text can name one in. Its unique identifiers are left out: they are
in every file, and point to a person only within the hospital. Values are looked at here and told nowhere.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydicom import Dataset


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


PERSON = _names("""
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
STAFF = _names("""
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
PLACE = _names("""
    InstitutionName InstitutionAddress InstitutionalDepartmentName InstitutionCodeSequence StationName
    DeviceSerialNumber GantryID PlateID DetectorID CassetteID PerformedStationName PerformedStationAETitle
    PerformedLocation ScheduledStationName ScheduledStationAETitle ScheduledProcedureStepLocation RequestingService
    PerformedStationNameCodeSequence ScheduledStationNameCodeSequence RetrieveAETitle
""")
TIME = _names("""
    StudyDate SeriesDate AcquisitionDate ContentDate AcquisitionDateTime AdmittingDate AdmittingTime
    InstanceCreationDate OverlayDate CurveDate ScheduledProcedureStepStartDate ScheduledProcedureStepEndDate
    PerformedProcedureStepStartDate PerformedProcedureStepEndDate ScheduledAdmissionDate ScheduledDischargeDate
    DischargeDate LastMenstrualDate DateOfSecondaryCapture FrameAcquisitionDateTime VerificationDateTime
""")
# The order in which a page tells of them.
GROUPS = {"person": PERSON, "staff": STAFF, "place": PLACE, "time": TIME}
PRIVATE, OVERLAY, BURNED = "private tags", "overlays", "BurnedInAnnotation = YES"
# What is in the place of a value that has been taken out.
BLANK = _names("""
    anonymous anonymized anonymised anonym anon removed deleted deidentified de-identified none unknown no_name
    noname na n/a xxx x 0 00000000 19000101
""")
FOUND = {name: group for group, names in GROUPS.items() for name in names}


def identifying(content: bytes) -> tuple[str, ...]:
    """Return the names of the attributes of a DICOM file that hold something identifying, sorted; () of other files."""
    if content[128:132] != b"DICM":
        return ()
    from ...data.formats.dicom import read_header

    try:
        return tags_of(read_header(io.BytesIO(content)))
    except Exception:  # of as many kinds as there are ways to be broken; that it cannot be read is told elsewhere
        return ()


def tags_of(header: Dataset) -> tuple[str, ...]:
    """Return the names of the attributes that hold something, at any depth; of a removed identity, only the others."""
    found = set()
    removed = str(header.get("PatientIdentityRemoved", "")).upper() == "YES"  # names are then made up, by its word
    for element in header.iterall():
        group = element.tag.group
        if element.tag.is_private:
            # A creator alone says whose block it is; what is in it nobody else knows.
            if not element.tag.is_private_creator and not element.is_empty:
                found.add(PRIVATE)
        elif 0x6000 <= group <= 0x60FF and element.tag.element == 0x3000:
            found.add(OVERLAY)
        elif element.keyword == "BurnedInAnnotation" and str(element.value).upper() == "YES":
            found.add(BURNED)
        elif removed and element.keyword in ("PatientName", "PatientID"):
            continue
        elif element.keyword in FOUND and not element.is_empty and _told(element.value):
            found.add(element.keyword)
    return tuple(sorted(found))


def _told(value: object) -> bool:
    words = str(value).replace("^", " ").lower().split()
    return bool(words) and not BLANK.issuperset(words)
